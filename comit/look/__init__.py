"""Faces of a results file, for people and for a PACS.

picture    the X-ray of a row, shown in the tones it was screened in, and its masks over it
worker     the process that decodes for all of these
heat       the network's probability of disease, by running it again
explain    Grad-CAM: what the network looked at
overlay    PNG pictures with contours or fills
report     one self-contained page
worklist   CSV in triage order
dicom      segmentation, measurement report and secondary capture
reference  what those take over from a radiograph's header
compare    two results files of the same inputs
"""
