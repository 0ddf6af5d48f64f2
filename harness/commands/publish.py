"""``plumbline publish``."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.commands.console import UserError
from harness.options import helped


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "publish", help="write a static site of a store's runs, cases and findings", description=publish.__doc__
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder of the site; later calls add to it")
    command.add_argument("--store", default="plumbline.db", **helped("--store"))
    command.add_argument(
        "--versions",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a table that plumbline versions wrote; may be repeated",
    )
    command.add_argument(
        "--submissions",
        type=Path,
        metavar="FOLDER",
        help="bundles of others (NAME.zip), each beside NAME.json of plumbline verify --json",
    )
    command.add_argument("--url", default="", help="the address of the site, for the feeds (default: relative links)")
    command.add_argument("--again", action="store_true", help="make every page again")
    command.add_argument("--prune", action="store_true", help="remove runs from the site that the store does not have")
    command.add_argument("--quiet", action="store_true", help="print only the path of the first page")
    command.set_defaults(call=publish)


def publish(options: argparse.Namespace) -> int:
    """Writes the site, or brings it up to date: only pages whose content may have changed are made again. It is a
    folder of files that can be opened from disk or served; it loads nothing from elsewhere."""
    from harness import findings
    from harness.history.trend import sought
    from harness.store import Store, StoreError
    from reports.site import SiteError, publish

    known = findings.read()
    given = {finding.id: vars(finding) | {"link": finding.link} for finding in known}
    scripts = {f.id: path.read_text("utf-8") for f in known if (path := findings.script(f))}
    url = f"{options.url.rstrip('/')}/" if options.url else ""

    def tell(line: str) -> None:
        if not options.quiet:
            print(f"plumbline: {line}", file=sys.stderr)

    try:
        store = Store.open(options.store, create=False)
        entered = _submissions(options.submissions, tell) if options.submissions else []
        done = publish(
            store,
            options.folder,
            given,
            scripts,
            options.versions,
            entered,
            url=url,
            again=options.again,
            prune=options.prune,
            seek=sought,
            tell=tell,
        )
    except (StoreError, SiteError) as error:
        raise UserError(str(error)) from None
    for note in done.notes:
        print(f"plumbline: {note}", file=sys.stderr)
    for name in done.left:
        print(f"plumbline: {name} is no longer part of the site, but was changed since: left there", file=sys.stderr)
    if not options.quiet:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in done.seconds.items())
        print(f"plumbline: {len(done.written)} files written ({parts})", file=sys.stderr)
    print(done.index)
    return 0


def _submissions(folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The bundles of a folder that are whole, each with the outcome of ``plumbline verify`` if that was of this very
    bundle."""
    from harness.submission import BundleError, read

    if not folder.is_dir():
        raise UserError(f"--submissions {folder}: no such folder")
    found = []
    for path in sorted(folder.glob("*.zip")):
        try:
            bundle = read(path)
        except BundleError as error:
            tell(f"not published: {error}")
            continue
        names = {name: str(bundle.run[name]) for name in ("run", "hardware", "command", "commit")}
        judged = _outcomes(path.with_suffix(".json"), bundle.digest, tell)
        torch = bundle.run["packages"].get("torch") or ""
        found.append({**names, **judged, "torch": torch, "digest": bundle.digest, "content": path.read_bytes()})
    return found


def _outcomes(path: Path, digest: str, tell: Callable[[str], None]) -> dict[str, Any]:
    from harness.submission.confirm import CONFIRMED, REFUTED, UNKNOWN

    none: dict[str, Any] = {"counts": {}, "refuted": [], "verified": ""}
    if not path.exists():
        return none
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["digest"] != digest:
            raise ValueError("it is of another bundle")
        states = Counter(one["state"] for one in stored["outcomes"])
        names = {"confirmed": CONFIRMED, "refuted": REFUTED, "unknown": UNKNOWN}
        texts = [
            f"{one['case']}: {one['measure']} {one['quantity']}: {one['reason']}"
            for one in stored["outcomes"]
            if one["state"] == REFUTED
        ]
        counts = {name: states[state] for name, state in names.items()}
        return {"counts": counts, "refuted": texts, "verified": str(stored["verified"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        tell(f"{path}: no outcome of plumbline verify for this bundle: {error}")
        return none
