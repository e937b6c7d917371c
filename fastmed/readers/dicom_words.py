"""Code words of DICOM that may be shown: any other text in their place may be a patient's name."""

from __future__ import annotations

import re

# Modality (0008,0060): PS3.3 C.7.3.1.1.1, retired ones among them.
_MODALITIES = """
    ANN AR ASMT AU BDUS BI BMD CD CF CFM CR CS CT CTPROTOCOL DD DF DG DM DMS DOC DS DX EC ECG EEG
    EMG EOG EPS ES FA FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT
    OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT
    RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF
    XA XAPROTOCOL XC
"""
# PhotometricInterpretation (0028,0004): PS3.3 C.7.6.3.1.2.
_PHOTOMETRIC = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "XYB"),
    *("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
)
# RescaleType (0028,1054): PS3.3 C.11.1.1.2.
_RESCALE_TYPES = (
    *("OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "NORMALIZED"),
    *("SUV", "BQML", "CNTS", "GRAY", "MG ML", "HOUNSFIELD"),
)
CODE = re.compile("|".join(("", *_MODALITIES.split(), *_PHOTOMETRIC, *_RESCALE_TYPES)))
