"""`vda data check` and `vda data extract`: is a data set right, and the needed files of an archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vda.data.check import Findings, check, compare, shares
from vda.data.extract import extract
from vda.data.manifest import manifest_file, write_manifest
from vda.data.problems import REMEDIES, Kind, Problem
from vda.errors import UsageError


@dataclass(frozen=True)
class Check:
    """Read every file of data sets: all that is wrong, what to do, and a manifest that training compares with."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """FILE.yaml/SPLIT or DATASET/SPLIT; classes of several stand side by side, so source and target are one call."""
    root: tuple[Path, ...] = ()
    """Folder of the data sets, or one for each; a description has its own."""
    workers: int = 2
    """Threads that read files."""


@dataclass(frozen=True)
class Extract:
    """Write some of the files of a zip archive to a folder; a second call goes on where the first was stopped."""

    archive: tyro.conf.Positional[Path]
    """The zip file."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the files, which keep their names and folders."""
    match: tuple[str, ...] = ()
    """Patterns, of which one must fit; * is any text in a name, ** any folders. Without / it is of the last name."""
    every: int = 1
    """Of the files that fit, every N-th in each folder, by their numbers."""
    split: str = ""
    """FILE.yaml/SPLIT: what this split of a description needs."""
    most_gb: int = 200
    """Refuse to write more than this many GiB."""


def data_main(arguments: list[str]) -> None:
    """Run `python -m vda data`."""
    commands = {"check": (Check, check_main), "extract": (Extract, extract_main)}
    if arguments[:1] in (["-h"], ["--help"]):
        print("usage: python -m vda data {check,extract} ...; each has a --help of its own")
        return
    if not arguments or arguments[0] not in commands:
        raise UsageError(f"vda data: wanted check or extract, got {' '.join(arguments[:1]) or 'nothing'}")
    settings, main = commands[arguments[0]]
    main(tyro.cli(settings, args=arguments[1:], prog=f"python -m vda data {arguments[0]}"))  # type: ignore[operator]


def extract_main(command: Extract) -> None:
    if command.every < 1 or command.most_gb < 1:
        raise UsageError("vda data extract: wanted --every and --most-gb of at least 1")
    new, old = extract(
        command.archive,
        command.out,
        match=command.match,
        every=command.every,
        split=command.split,
        most_bytes=command.most_gb << 30,
    )
    print(f"{command.out}: {new} files of {command.archive} written, {old} were there")


def check_main(command: Check) -> None:
    names, roots = command.data, command.root
    if not names or len(roots) not in (0, 1, len(names)) or command.workers < 1:
        raise UsageError(
            "vda data check: wanted at least one data set, no --root, one or one for each, and --workers of at least 1"
        )
    root_of = {name: roots[k if len(roots) > 1 else 0] if roots else None for k, name in enumerate(names)}
    found = [check(name, root, command.workers) for name, root in root_of.items()]
    compare(found)
    for findings in found:
        print(f"\n{summary(findings)}")
        if not findings.problems:
            print(f"  all files are whole; {keep_manifest(findings, root_of[findings.name])}")
    if table := histogram([findings for findings in found if findings.classes]):
        print(f"\n{table}")
    wrong = sum(len(findings.problems) for findings in found)
    if wrong:
        raise UsageError(f"{wrong} problem{'s' if wrong > 1 else ''} in {', '.join(names)}; see the list above")


def summary(findings: Findings) -> str:
    """What was found, with every problem and its remedy."""
    sizes = ", ".join(f"{width} x {height}" for (height, width), _ in findings.sizes.most_common(3))
    lines = [
        f"{findings.name}: {findings.clips} clips, {findings.frames} frames of {sizes or 'no size'}, "
        f"{findings.labels} labels, {len(findings.files)} files"
    ]
    kinds: dict[Kind, list[Problem]] = defaultdict(list)
    for problem in findings.problems.values():
        kinds[problem.kind].append(problem)
    for kind, problems in kinds.items():
        lines += [f"  {kind}, {len(problems)}: {REMEDIES[kind]}", *(f"    {p.message}" for p in problems)]
    return "\n".join([*lines, *(f"  note: {note}" for note in findings.notes)])


def keep_manifest(findings: Findings, root: Path | None) -> str:
    """Writes the manifest of a data set without problems; a sentence that says where, or why not."""
    path = manifest_file(findings.name, root)
    if path is None:
        return "there is no folder for a manifest"
    try:
        write_manifest(path, findings.name, findings.files)
    except OSError as error:
        return f"no manifest, since {path} cannot be written ({error.strerror}): training will not compare"
    return f"training will compare with {path}"


def histogram(found: Sequence[Findings]) -> str:
    """Percent of the labelled pixels of each class, data sets side by side; empty where their classes differ."""
    if len({findings.classes for findings in found}) != 1 or not any(findings.labels for findings in found):
        return ""
    rows = [*found[0].classes, "ignored"]
    columns = [shares(findings) for findings in found]
    width = max(map(len, rows)) + 2
    lines = ["percent of labelled pixels".ljust(width) + "".join(f"  {f.name[-24:]:>24}" for f in found)]
    for k, row in enumerate(rows):
        cells = ("-" if column[k] != column[k] else f"{column[k]:.3f}" for column in columns)
        lines.append(row.ljust(width) + "".join(f"  {cell:>24}" for cell in cells))
    return "\n".join(lines)
