"""What all pages of a site share: its store and folder, the templates, and what is known when a page is made."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.store import Store
from reports import units
from reports.site import source
from reports.site.folder import Folder
from reports.site.names import case_page, safe

PLACES = (
    ("Runs", "index.html"),
    ("Cases", "cases/index.html"),
    ("By engine", "standing.html"),
    ("Findings", "findings/index.html"),
    ("Releases", "versions.html"),
    ("Claims", "claims.html"),
    ("Submissions", "submissions.html"),
    ("Verify", "verify.html"),
)


@dataclass
class Site:
    store: Store
    folder: Folder
    tell: Callable[[str], None]
    again: bool
    runs: list[source.Run]
    url: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # findings
    scripts: Mapping[str, str] = field(default_factory=dict)
    versions: Sequence[dict[str, Any]] = ()
    submissions: Sequence[Mapping[str, Any]] = ()
    trend_note: str = ""

    def __post_init__(self) -> None:
        self.by_id = {run.run: run for run in self.runs}
        self.torch = source.newest([run.torch for run in self.runs if run.torch])
        self.code = code()
        self.environment = Environment(
            loader=PackageLoader("reports"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters |= {
            "svg": Markup,
            "moment": units.moment,
            "share": units.share,
            "quoted": safe,
            "case_page": case_page,
        }
        self.finding_ids: set[str] = set()

    def page(self, template: str, address: str, title: str, **content: Any) -> bytes:
        """A page as it is at its address; links in it are relative."""
        known = {
            "root": "../" * address.count("/"),
            "here": address,
            "places": PLACES,
            "title": title,
            "newest_torch": self.torch,
            "finding_ids": self.finding_ids,
            "trend_note": self.trend_note,
        }
        return self.environment.get_template(f"site/{template}").render(known | content).encode()

    def put(self, template: str, address: str, title: str, **content: Any) -> None:
        self.folder.write(address, self.page(template, address, title, **content))

    def fresh(self, name: str, made: str) -> bool:
        return not self.again and self.folder.fresh(name, made)


def described(environment: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as texts, the packages one by one."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, Mapping):
            found |= {inner: str(each) for inner, each in value.items() if each is not None}
        elif name == "memory" and isinstance(value, int | float):
            found[name] = units.figure(value, "B")
        else:
            found[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "replace")).hexdigest()[:16]


def code() -> str:
    """Changes with everything that makes the pages of this site."""
    home = files("reports")
    parts = [home / "commands.py", home / "units.py", home / "palette.py"]
    for folder in (home / "site", home / "templates" / "site"):
        parts += sorted((each for each in folder.iterdir() if each.is_file()), key=lambda each: each.name)
    return digest([part.read_text("utf-8") for part in parts])


def asset(name: str) -> str:
    return files("reports").joinpath("assets", name).read_text(encoding="utf-8")
