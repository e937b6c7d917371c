"""Pairs of label maps: which prediction has which truth, by their names alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmed.errors import FastmedError
from fastmed.readers.label_maps import EXTENSIONS, PICTURES, stem
from fastmed.readers.series import name_from_path
from fastmed.readers.walk import walk

_NNUNET_CHANNEL = "_0000"  # imagesTr/a_0000.nii.gz has its truth in labelsTr/a.nii.gz


@dataclass(frozen=True)
class LabelFile:
    """One label map: its file, the names it may be paired by, the model's labels where known."""

    path: Path
    names: tuple[str, ...]
    model_labels: tuple[str, ...] | None = None

    @property
    def is_picture(self) -> bool:
        """Whether it is an image, which does not say where it is."""
        return _ends(self.path.name, PICTURES)


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth."""

    name: str
    prediction: LabelFile
    truth: LabelFile


def pair_label_maps(predictions: Path, truth: Path) -> tuple[list[Pair], list[str]]:
    """Pairs label maps by name; two files are a pair whatever their names.

    predictions: what `fastmed infer` wrote, a folder of label maps, or one file. truth: a folder,
        searched with all folders in it, or one file.

    A file's name is its path below the folder with / written as __, without the extension; that
    of a file called labels.* is its folder's. Where a folder holds such files, they alone count.
    A result of `fastmed infer` is found under its series' name or else its scan's path.

    Returns the pairs by name, and a sentence on each file without a partner. Raises UsageError
    where a path is absent, FastmedError where two files have one name or there is no pair.
    """
    predicted, problems = _predictions(predictions)
    true = _label_files(truth)
    if predictions.is_file() and truth.is_file():
        return [Pair(predicted[0].names[0], predicted[0], true[0])], problems
    by_name = _by_name(true, lambda file: file.names)
    _by_name(predicted, lambda file: file.names[:1])
    pairs, used = [], set()
    for file in predicted:
        plain = file.names[0].removesuffix(_NNUNET_CHANNEL)
        partner = next((by_name[n] for n in (*file.names, plain) if n in by_name), None)
        if partner is None:
            problems.append(f"{file.path}: no truth is named {file.names[0]}")
        elif partner.path in used:
            raise FastmedError(f"{partner.path}: it is the truth of two predictions")
        else:
            used.add(partner.path)
            pairs.append(Pair(file.names[0], file, partner))
    problems += [
        f"{file.path}: no prediction is named {file.names[0]}"
        for file in true
        if file.path not in used
    ]
    if not pairs:
        raise FastmedError(
            f"{predictions}, {truth}: no prediction has the name of a truth; "
            f"{'; '.join(problems[:3]) or 'both are empty'}"
        )
    return pairs, problems


def _predictions(path: Path) -> tuple[list[LabelFile], list[str]]:
    folder = path / "series" if (path / "series").is_dir() else path
    files = _label_files(folder)
    without = []
    if folder != path:
        files = [file for file in files if stem(file.path.name).lower() == "labels"]
        held = {file.path.parent for file in files}
        without = [
            f"{one}: it holds no labels.nii.gz; run fastmed infer with --write nifti,json"
            for one in sorted(folder.iterdir())
            if one.is_dir() and not one.name.startswith(".") and one not in held
        ]
    found = [_findings(file.path.with_name("findings.json")) for file in files]
    sources = [_name(str(one["source"])) if one else "" for one in found]
    return [
        LabelFile(
            path=file.path,
            # Several series of one folder have one source, which then names none of them.
            names=(file.names[0], *({source} if source and sources.count(source) == 1 else ())),
            model_labels=tuple(str(mask["label"]) for mask in one["masks"]) if one else None,
        )
        for file, one, source in zip(files, found, sources, strict=True)
    ], without


def _findings(path: Path) -> dict | None:
    """A findings.json that has masks; None without one."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        return found if [mask["label"] for mask in found["masks"]] and found["source"] else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FastmedError(f"{path}: not readable as findings ({error}); run it again") from error


def _label_files(path: Path) -> list[LabelFile]:
    """The label maps at or below a path, each once, by name."""
    if path.is_file():
        is_called_labels = stem(path.name).lower() == "labels"
        return [
            LabelFile(path, (stem(path.absolute().parent.name if is_called_labels else path.name),))
        ]
    found = [
        one
        for one in walk(path)
        if one.relative.lower().endswith(EXTENSIONS)
        and not any(part.startswith(".") for part in one.relative.split("/"))
    ]
    folders: dict[str, list[str]] = {}
    for one in found:
        folder, _, file = one.relative.rpartition("/")
        if stem(file).lower() == "labels":
            folders.setdefault(folder, []).append(file)
    if not folders:
        return [LabelFile(Path(one.path), (_name(one.relative),)) for one in found]
    return [_named_by_folder(path, folder, files) for folder, files in folders.items()]


def _named_by_folder(root: Path, folder: str, files: list[str]) -> LabelFile:
    """A labels.* goes by its folder's name, and by that of a scan beside it (case/ct.nii.gz)."""
    file = min(files, key=lambda f: next(k for k, e in enumerate(EXTENSIONS) if _ends(f, e)))
    beside = sorted(one.name for one in (root / folder).iterdir() if stem(one.name) != one.name)
    scans = [f"{folder}/{one}".lstrip("/") for one in beside if one not in files]
    names = (_name(folder) if folder else root.absolute().name, *map(_name, scans))
    return LabelFile(root / folder / file, names)


def _name(relative: str) -> str:
    return stem(name_from_path(relative))


def _ends(file: str, extension: str | tuple[str, ...]) -> bool:
    return file.lower().endswith(extension)


def _by_name(
    files: Sequence[LabelFile], names: Callable[[LabelFile], Sequence[str]]
) -> dict[str, LabelFile]:
    by_name: dict[str, LabelFile] = {}
    for file in files:
        for name in names(file):
            if name in by_name:
                raise FastmedError(f"{by_name[name].path}, {file.path}: both are named {name}")
            by_name[name] = file
    return by_name
