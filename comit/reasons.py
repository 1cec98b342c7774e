"""The one list of why a row has no scores, and of what to know about one that has.

Every code appears in results as written here and is explained in ``docs/reference/results.md``,
which a test holds to this list. A code never carries text from a file: that may name a patient.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """A string enumeration whose members carry their explanation in ``meaning``."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Code:
        """``value`` is the code, ``meaning`` its explanation."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class Skip(Code):
    """``status = skipped``: readable or recognised, and not a frontal chest radiograph."""

    MODALITY = "modality", "the DICOM Modality is not a radiograph (CR, DX, DR, RG, XR, OT, SC)"
    SOP_CLASS = "sop_class", "a DICOM object that is not an image (DICOMDIR, report, segmentation)"
    FOR_PROCESSING = (
        "for_processing",
        "a detector's raw values (SOP class or PresentationIntentType For Processing)",
    )
    ANATOMY = "anatomy", "another body part than the chest, by its tags"
    VIEW = "view", "a lateral, oblique or decubitus view, by its tags"
    UNVERIFIED_VIEW = "unverified_view", "no tag says frontal chest, and --view-policy strict asks"
    NOT_A_CHEST = (
        "not_a_chest",
        "by its picture not an upright frontal chest radiograph (score_chest), and no tag says so",
    )
    MULTI_FRAME = "multi_frame", "more than one frame or page; comit reads single radiographs"
    UNSUPPORTED_FORMAT = "unsupported_format", "not DICOM, PNG or JPEG, by its content"
    OUTSIDE_ROOT = (
        "outside_root",
        "a link or a path with .. that leads out of the folder screened",
    )
    NOT_A_FILE = "not_a_file", "a FIFO, socket or device; never opened"


class Fail(Code):
    """``status = failed``: should have had scores and has none."""

    EMPTY = "empty", "the file has no bytes"
    TRUNCATED = "truncated", "the file ends before its content does"
    CORRUPT = "corrupt", "the content contradicts its format or its checksums"
    NOT_DICOM = "not_dicom", "looks like DICOM and cannot be parsed as such"
    NO_PIXELS = "no_pixels", "a DICOM image without PixelData"
    BAD_GEOMETRY = "bad_geometry", "Rows, Columns, bit depth or length do not fit one another"
    UNSUPPORTED_TRANSFER_SYNTAX = (
        "unsupported_transfer_syntax",
        "a DICOM transfer syntax that no installed codec reads",
    )
    DECODE = "decode", "the codec rejects the compressed stream"
    TOO_LARGE = "too_large", "more bytes or pixels than the limits allow"
    TOO_SMALL = "too_small", "fewer than 64 pixels along a side, or a side 8 times the other"
    TOO_COMPLEX = "too_complex", "a header nested or compressed beyond any real one"
    BLANK = "blank", "every pixel has the same value"
    NONFINITE = "nonfinite", "pixels that are NaN or infinite"
    MODEL_NONFINITE = "model_nonfinite", "the network's output is NaN or infinite"
    NULL_PATH = "null_path", "the manifest has no path in this row"
    PERMISSION = "permission", "the file may not be read by this user"
    VANISHED = "vanished", "no file is there: it went after it was listed, or its path is wrong"
    CHANGED = "changed", "the file changed while it was read"
    NOT_FOUND = "not_found", "the store has no such object"
    DENIED = "denied", "the store does not give the object with these credentials"
    UNREACHABLE = "unreachable", "the store did not give the object within the time limit"
    READ_ERROR = "read_error", "the operating system failed to read the file"
    TIMEOUT = "timeout", "reading and decoding took longer than the time limit"
    CRASH = "crash", "the decoder died on this file (or ran out of memory)"
    UNWRITABLE = "unwritable", "what was found could not be written; the row says nothing else"


class Caution(Code):
    """``warnings``: the row is ok, and this was found on the way."""

    UNVERIFIED_VIEW = "unverified_view", "no tag says that this is a frontal chest view"
    OTHER_VIEW = "other_view", "not a frontal view, by its tags; --view-policy all took it"
    OTHER_ANATOMY = "other_anatomy", "not a chest, by its tags; --view-policy all took it"
    FOR_PROCESSING = (
        "for_processing",
        "a detector's raw values, maybe a negative; --view-policy all took it",
    )
    CONTRADICTING_TAGS = (
        "contradicting_tags",
        "tags contradict one another about body part or view, which is unknown",
    )
    CHILD = "child", "the patient is younger than 15 years; such models are for adults"
    CHEST_DOUBTED = (
        "chest_doubted",
        "by its picture not an upright frontal chest radiograph; tags or --view-policy all kept it",
    )
    COLOUR = "colour", "colour or transparency was converted to grey"
    POLARITY = "polarity", "PresentationLUTShape contradicts PhotometricInterpretation"
    WINDOW_UNUSABLE = (
        "window_unusable",
        "a window or VOI LUT of the header cannot be used or shows one shade; left out",
    )
    WINDOW_CLIPS = (
        "window_clips",
        "the header's window or VOI LUT leaves two thirds of the picture black or white",
    )
    RESCALE_UNUSABLE = (
        "rescale_unusable",
        "the rescale or Modality LUT of the header cannot be used; left out",
    )
    DECIMAL_COMMA = "decimal_comma", "a number with a decimal comma, which was read as a point"
    NONSTANDARD_VALUE = (
        "nonstandard_value",
        "a window or LUT that breaks the Standard was used as docs/decoding.md says",
    )
    UNREADABLE_VALUE = (
        "unreadable_value",
        "a value that shapes the picture cannot be used; its default was (docs/decoding.md)",
    )
    SEVERAL_WINDOWS = "several_windows", "several windows or VOI LUTs; the first was used"
    PADDING = "padding", "pixel padding was left out of the picture and its statistics"
    BURNED_IN = "burned_in", "BurnedInAnnotation says text is burned in"
    ORIENTATION = (
        "orientation",
        "turned as Exif says, or not turned as PatientOrientation asks",
    )
    TRAILING_BITS = "trailing_bits", "bits outside BitsStored were set and masked out"
    NO_FILE_META = "no_file_meta", "DICOM without preamble or file meta information"
    UNKNOWN_VR = "unknown_vr", "an element has a blank for its VR; the dictionary's was taken"
    LENGTH = "length", "PixelData is longer than Rows x Columns needs; the rest was ignored"
    SYNTAX_MISMATCH = "syntax_mismatch", "the stream is not what the transfer syntax says"
    END_MARKER = (
        "end_marker",
        "a marker or delimiter is missing behind a picture that is whole",
    )
    CHECKSUM = "checksum", "a part of a PNG beside its picture is damaged, and was left out"
    DUPLICATE_UID = "duplicate_uid", "another row has this SOPInstanceUID and other bytes"
    IDENTICAL_COPY = "identical_copy", "another row that is ok has the same size and CRC-32"
    VALUE_LEFT_OUT = "value_left_out", "a value of the file does not fit its column: null here"


class Unmade(Code):
    """Why ``comit dicom`` made no object of a row that is ok; results never hold these."""

    UID = "uid", "its header lacks a usable UID of object, series or study, or of the SOP class"
    OBJECT = "object", "highdicom cannot make an object of this kind from its header"


REASONS: dict[str, Skip | Fail] = {str(code): code for code in (*Skip, *Fail)}
