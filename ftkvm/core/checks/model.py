"""What a check is, what it finds, and the report of many. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Generic, TypeVar

from ftkvm.catalogue import FtkvmError

F = TypeVar("F")


class Severity(StrEnum):
    """ERROR refuses (enable, power-on, placement); WARNING is only told."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """Something a check found: a message of the catalogue with its parameters."""

    code: str
    params: dict[str, str]
    severity: Severity = Severity.ERROR

    def no_worse_than(self, most: Severity | None) -> "Finding":
        """The finding, as a warning if no more than that is wanted."""
        return replace(self, severity=Severity.WARNING) if most is Severity.WARNING else self

    def error(self) -> FtkvmError:
        """The finding as the refusal that it is."""
        return FtkvmError(self.code, **self.params)


@dataclass(frozen=True)
class Check(Generic[F]):
    """One thing that is looked at. ``without_ft``: how grave it is where FT is not asked for; None: no matter then."""

    name: str
    title: str
    find: Callable[[F], Iterator[Finding]]
    without_ft: Severity | None = None


@dataclass(frozen=True)
class Result:
    """What one check found."""

    name: str
    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Report:
    """What all checks found of one subject (``vm vm1``, ``host host2``, ``cluster``)."""

    subject: str
    results: tuple[Result, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for result in self.results for finding in result.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def compliant(self) -> bool:
        """Nothing refuses; there may be warnings."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """As the API and ``--output json`` carry it."""
        findings = [
            {"check": result.name, "severity": str(finding.severity), **finding.error().to_json(),
             "doc": f"docs/messages.md#{finding.code.lower()}"}
            for result in self.results for finding in result.findings
        ]  # fmt: skip
        checks = [{"name": each.name, "title": each.title, "findings": len(each.findings)} for each in self.results]
        return {"subject": self.subject, "compliant": self.compliant, "checks": checks, "findings": findings}


def run(subject: str, checks: Iterable[Check[F]], facts: F, *, for_ft: bool = True, **params: str) -> Report:
    """Run the checks, all of them or those that matter without FT too; ``params`` are added to every finding."""
    results = []
    for check in checks:
        if for_ft or check.without_ft is not None:
            found = (replace(each, params={**params, **each.params}) for each in check.find(facts))
            mildest = Severity.ERROR if for_ft else check.without_ft
            results.append(Result(check.name, check.title, tuple(each.no_worse_than(mildest) for each in found)))
    return Report(subject, tuple(results))


def require(report: Report) -> None:
    """Refuse with the first error; the others are in its parameter ``also``.

    :raises FtkvmError: the finding's code
    """
    errors: Sequence[Finding] = report.errors
    if errors:
        also = "; ".join(other.error().text for other in errors[1:])
        raise FtkvmError(errors[0].code, **{**errors[0].params, "also": also})
