"""Objects of ``comit dicom`` on their way into a PACS.

address  what --send names, and the credentials that files and the environment hold
outbox   one file an instance with its state; what a killed run resumes from
stow     DICOMweb: STOW-RS, and QIDO-RS to read back
dimse    C-STORE, and C-FIND to read back
deliver  what is sent, tried again, read back and given up
"""
