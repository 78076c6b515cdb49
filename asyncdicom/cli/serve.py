"""``asyncdicom serve`` and ``asyncdicom check-config``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

from asyncdicom.cli.ending import OK, USAGE, refuse
from asyncdicom.cli.targets import DEFAULT_FILE, VARIABLE, find_config
from asyncdicom.errors import ConfigurationErrors
from asyncdicom.service.config import Config, load


def serve(config: Path | None, log_format: Literal["text", "json"], log_level: str) -> int:
    """Run the service until it is told to end.

    :return: the exit status
    """
    from asyncdicom.service.run import serve as serve_config

    return serve_config(_required(config), log_format=log_format, level=logging.getLevelNamesMapping()[log_level.upper()])


def check_config(file: Path | None, json: bool) -> int:
    """Tell every mistake of a configuration on standard output.

    :return: the exit status
    """
    path = _required(file)
    try:
        config = load(path)
    except ConfigurationErrors as errors:
        for error in errors:
            if json:
                from asyncdicom.cli.rendering import as_json

                print_line(as_json({"path": error.path, "value": str(error.value), "remedy": error.remedy}))
            else:
                print_line(str(error))
        return USAGE
    if not json:
        for line in _summary(path, config):
            print_line(line)
    return OK


def print_line(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")


def _required(named: Path | None) -> Path:
    path = find_config(named)
    if path is None:
        refuse(f"there is no configuration: name one, put {DEFAULT_FILE} here, or set ${VARIABLE}")
    return path


def _summary(path: Path, config: Config) -> list[str]:
    groups = {group for modality in config.modality for group in modality.groups}
    lines = [f"{path}: no mistakes"]
    lines.append(f"  AE title    {config.ae.title}")
    scp = config.scp
    if scp is not None:
        tls = ", TLS" if scp.tls is not None and scp.tls.certificate is not None else ""
        lines.append(f"  storage SCP {scp.host}:{scp.port}{tls}")
    if config.identities is not None:
        users, tokens = config.identities.users, config.identities.tokens
        who = [*([f"{len(users)} users"] if users is not None else []), *(["signed tokens"] if tokens is not None else [])]
        needed = "required" if config.identities.required else "not required"
        lines.append(f"  identities  {', '.join(who)}; {needed}")
    if config.archive is not None:
        where = config.archive.url or config.archive_directory
        lines.append(f"  archive     {where}, durability {config.archive.durability}")
    lines.append(f"  modalities  {len(config.modality)} in {len(groups)} groups, {len(config.sweep)} sweeps")
    if config.web is not None:
        lines.append(f"  web         http://{config.web.host}:{config.web.port}/")
    return lines
