"""Measure what leaks and hold it against the claim: exit code 0 passed, 4 the claim is refuted, 5 nothing follows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from tmca_core.audits import attribute, inversion, mechanism, membership, onerun, sensitivity  # noqa: F401  (they register themselves)
from tmca_core.audits.interface import AUDITS, EXIT_CODES, Audit
from tmca_core.audits.subjects import Beta, Held, Settings
from tmca_core.cli import emit
from tmca_core.config import load
from tmca_core.errors import AuditInvalid, ConfigError, NotApplicable, TmcaError

if TYPE_CHECKING:
    from tmca_core.audits.conduct import Report

ORDER = ("sensitivity", "mechanism", "one-run", "membership", "inversion", "attribute")  # of power; others come last

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Out = Annotated[Path | None, typer.Option(help="Folder of registered.json, attempts.jsonl, audit.json and audit.html.")]


class Audits(typer.core.TyperGroup):
    """Subcommands whose unknown names are answered with the known ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of an audit.

        Raises:
            ConfigError: there is no such audit.
        """
        found = super().get_command(ctx, cmd_name)
        return found or super().get_command(ctx, str(AUDITS[cmd_name]))


app = typer.Typer(cls=Audits, add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def bound(
    canaries: Annotated[int, typer.Option(min=1, help="m, canaries included by independent coins.")],
    guesses: Annotated[int, typer.Option(min=1, help="r, guesses made; fixed beforehand.")],
    correct: Annotated[int, typer.Option(min=0, help="v, right ones among them.")],
    delta: Annotated[float, typer.Option(help="δ at which ε is stated.")] = 1e-5,
    beta: Annotated[float, typer.Option(help="Error probability: confidence is 1 − β.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Lower bounds on ε and μ from the right guesses of one training run."""
    from tmca_core.audits.bounds import epsilon_of_mu, fdp_mu, one_run_epsilon

    steinke, most = (one_run_epsilon(canaries, guesses, v, delta, beta) for v in (correct, guesses))
    mu, most_mu = (fdp_mu(canaries, guesses, v, beta) for v in (correct, guesses))
    value = {
        "epsilon_one_run": steinke,
        "mu": mu,
        "epsilon_fdp": epsilon_of_mu(mu, delta),
        "max_attainable": most,
        "max_attainable_mu": most_mu,
        "max_attainable_fdp": epsilon_of_mu(most_mu, delta),
    }
    found, top = value["epsilon_fdp"], value["max_attainable_fdp"]
    lines = [
        f"{correct} right of {guesses} guesses on {canaries} canaries, δ = {delta:g}, confidence {1 - beta:g}",
        f"one-run (Steinke et al. 2023)      ε ≥ {steinke:.4f}, at most {most:.4f} with every guess right",
        f"f-DP (Mahloujifar et al. 2024)     μ ≥ {mu:.4f}, which is ε ≥ {found:.4f}, at most {top:.4f}",
    ]
    emit(as_json, value, "\n".join(lines))


@app.command("all")
def every(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Out = None,
    only: Annotated[str, typer.Option(help="Audits, comma-separated; empty: every one that can audit a run.")] = "",
    assignments: Settings = None,
    epsilon: Held = 0.0,
    beta: Beta = 0.05,
    as_json: AsJson = False,
) -> None:
    """Every audit of a run's folder that its configuration allows; --set, --epsilon and --beta go to those that have them."""
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    names = [name for name in wanted or audit_names() if wanted or "run" in _options(AUDITS[name])]
    if not run.is_dir():
        raise ConfigError(f"{run} is no folder: give a run's, with its config.toml.")
    for name in names:
        if "run" not in _options(AUDITS[name]):
            raise ConfigError(f"the audit '{name}' does not audit a run's folder: call `tmca audit {name}` by itself.")
    if not 0 < beta < 1:
        raise ConfigError(f"--beta {beta:g}: an error probability lies between 0 and 1.")
    load(None, assignments or [])  # says here, once, what is no setting
    given = {"run": run, "assignments": assignments, "epsilon": epsilon, "beta": beta}
    taken = {name: {key: value for key, value in given.items() if key in _options(AUDITS[name])} for name in names}
    left_out = [name for name in audit_names() if "run" in _options(AUDITS[name]) and name not in names]
    _carry_out([(name, functools.partial(AUDITS[name], **taken[name])) for name in names], "all", out, as_json, left_out)


def audit_names() -> list[str]:
    """Registered audits in the order of their power."""
    return sorted(AUDITS.names(), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _carry_out(
    audits: Sequence[tuple[str, Callable[[], Audit]]], kind: str, out: Path | None, as_json: bool, left_out: Sequence[str] = ()
) -> None:
    """Conduct, write audit.json and audit.html, print, and leave with the exit code of the worst verdict.

    Args:
        left_out: audits that could be made of the same run and are not; one that failed in this folder before stays failed.

    Raises:
        ConfigError: options that do not go together, or a folder that holds another audit. Of several audits that one is INVALID, as
            is one that breaks in any other way, and the reports of the others are written.
    """
    from tmca_core.audits.conduct import failed_before
    from tmca_core.audits.page import silent_sentences, worst, write
    from tmca_core.console import run_folder

    folder = run_folder(out, f"audit-{kind}")
    if folder.is_file() or (folder / "config.toml").exists():
        what = "a file" if folder.is_file() else "a run's, in which an audit changes nothing"
        raise ConfigError(f"--out {folder} is {what}: name another folder.")
    together = kind == "all"
    reports = [_conducted(name, factory, folder / name if together else folder, alone=not together) for name, factory in audits]
    reports += [report for name in left_out if (report := failed_before(name, folder / name))]
    left_out = [name for name in left_out if name not in {report.name for report in reports}]
    value = write(folder, reports, together=together, left_out=left_out)
    lines = [f"{report.name}: {report.verdict}\n  {report.sentence}" for report in reports]
    if together:
        lines.append("\n  ".join([f"all: {value['verdict']}", *silent_sentences(reports, left_out)]))
    emit(as_json, value, "\n".join([*lines, f"report: {folder / 'audit.html'}"]))
    raise typer.Exit(EXIT_CODES[worst(reports)])


def _conducted(name: str, factory: Callable[[], Audit], own: Path, *, alone: bool) -> Report:
    """The report of one audit in its own folder.

    Args:
        alone: errors other than AuditInvalid leave; among several audits they are reported as INVALID.
    """
    from tmca_core.audits.conduct import conduct, invalid, reason_of

    try:
        try:
            return conduct(factory(), own)
        except AuditInvalid as error:
            return invalid(name, str(error), own, applies=not isinstance(error, NotApplicable))
        except Exception as error:
            if alone or isinstance(error, TmcaError | OSError):  # the folder is another audit's, or nothing can be written there
                raise
            return invalid(name, reason_of(error), own)
    except Exception as error:
        if alone:
            raise
        return invalid(name, reason_of(error), None)


def _options(factory: Callable[..., Audit]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(factory, eval_str=True).parameters)


def _command(name: str, factory: Callable[..., Audit]) -> Callable[..., None]:
    """A typer command with the factory's own options, --out and --json."""

    @functools.wraps(factory)
    def conducted(out: Path | None = None, as_json: bool = False, **options: Any) -> None:
        _carry_out([(name, functools.partial(factory, **options))], name, out, as_json)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [parameter.replace(kind=keyword) for parameter in _options(factory).values()]
    shared = [
        inspect.Parameter("out", keyword, default=None, annotation=Out),
        inspect.Parameter("as_json", keyword, default=False, annotation=AsJson),
    ]
    conducted.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    conducted.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return conducted


for _name in audit_names():
    app.command(_name)(_command(_name, AUDITS[_name]))
