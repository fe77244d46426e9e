"""The command line ``dive``.

Each command is declared here and calls one function of the package, which is imported when the command runs, so that
``dive --help`` takes a tenth of a second.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

ASSETS = ("radgraph", "radgraph-xl", "modern-radgraph-xl", "chexbert")
"""Names in resources/assets.json."""


class SeveralFiles(click.Command):
    """A command whose ``--configfile`` and ``--profile`` take one or several values, as Snakemake's do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each further value."""
        repeated: list[str] = []
        option: str | None = None
        empty = False
        for argument in [*args, None]:
            if argument is None or argument.startswith("-"):
                if option and empty:
                    raise click.BadOptionUsage(option, f"Option {option!r} requires an argument.", ctx)
                option = argument if argument in ("--configfile", "--profile") else None
                empty = True
                repeated += [argument] if argument and not option else []
            else:
                repeated += [option, argument] if option else [argument]
                empty = False
        return super().parse_args(ctx, repeated)


class Closed(Exception):
    """Whoever reads the output, such as head, has closed the pipe. Click would make an exit status of 1 of it."""


class Commands(click.Group):
    """A group whose commands may write to a pipe that is closed before their end."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise Closed from error


def reads_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name the configuration; it gets the files of the configuration as ``files``."""

    @click.option("--configfile", "overlays", multiple=True, metavar="FILE...", help="Overlays of config.yaml.")
    @click.option("--profile", "profiles", multiple=True, metavar="FOLDER...", help="Profiles that name overlays.")
    @click.option(
        "--options",
        default="",
        metavar="TEXT",
        help="Options of snakemake in one text, of which --configfile and --profile are read.",
    )
    @wraps(command)
    def with_files(overlays: Sequence[str], profiles: Sequence[str], options: str, **others: Any) -> Any:
        from dive.configfiles import files_of

        named = ["--configfile", *overlays, "--profile", *profiles, *shlex.split(options)]
        return command(files=files_of(named)[0], **others)

    return with_files


def check_device(ctx: click.Context, option: click.Parameter, text: str) -> str:
    """Refuse what is no device as torch names it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise click.BadParameter(f"{text!r} is none of auto, cpu, mps, cuda and cuda:<n>")
    return text


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dive")
def commands() -> None:
    """Decisive-token in-context vector distillation for chest X-ray reports.

    `score` and `fetch-assets` work in any folder. The other commands work in the folder of the workflow, where
    config.yaml and results/ are; `dive demo` is a good start there.
    """


@commands.command(short_help="Run a small part of the synthetic world.")
@click.option("--cores", default="all", show_default=True, help="How many jobs run at a time.")
def demo(cores: str) -> None:
    """Run one dataset, one backbone and five methods of the synthetic world, and print what they wrote.

    It takes about 40 seconds on two cores, needs no download, and prints the table, three test reports beside the
    references, and where the page is. `make reproduce` continues with what it has computed.

    \b
    Examples:
      dive demo
      dive demo --cores 2
    """
    from dive.demo import run_demo

    click.echo(run_demo(cores), nl=False)


@commands.command(short_help="Score the reports of any system, without the workflow.")
@click.argument("files", nargs=-1, required=True)
@click.option("--hypothesis", default="hypothesis", show_default=True, help="Column of the generated report.")
@click.option("--reference", default="reference", show_default=True, help="Column of the reference.")
@click.option("--references", metavar="FILE", help="File of the references, if they are not beside the hypotheses.")
@click.option("--id", default="study_uid", show_default=True, help="Column of the study; it pairs files.")
@click.option("--stopped", help="Column that says whether the system ended a report, and no length limit.")
@click.option("--out", metavar="FILE", help="CSV to write: one row per metric.")
@click.option("--reports", metavar="FILE", help="Parquet to write: the statistics of each report, without its text.")
@click.option("--radgraph", metavar="FOLDER", help="Folder of <archive>/{config.json, weights.th, vocabulary/}.")
@click.option("--archive", default="radgraph-xl", show_default=True, help="Archive of RadGraph.")
@click.option(
    "--max-words",
    type=click.IntRange(1, 999_999_999),
    default=350,
    show_default=True,
    help="Words of a hypothesis that RadGraph reads.",
)
@click.option("--lower", is_flag=True, help="Lower-case both sides for RadGraph.")
@click.option("--chexbert", metavar="FILE", help="Checkpoint of CheXbert, chexbert.pth.")
@click.option(
    "--encoder",
    default="bert-base-uncased",
    show_default=True,
    help="Configuration and vocabulary of CheXbert's BERT: a folder or a name on the Hugging Face hub.",
)
@click.option(
    "--device", default="auto", callback=check_device, show_default=True, help="auto, cpu, mps, cuda or cuda:<n>."
)
@click.option("--remember", metavar="FOLDER", help="Folder in which RadGraph and CheXbert remember what they read.")
@click.option("--vocabulary", metavar="FILE", help="Vocabulary of the lexicon scores (CSV); default: that of DIVE.")
def score(files: tuple[str, ...], vocabulary: str | None, **options: Any) -> None:
    """Score the reports of any system by the same code as the workflow's tables.

    Each of FILES holds the reports of one system, as CSV with a header or as JSON Lines: a row is a report with its
    reference. Files that are given together must hold the same studies. RadGraph F1 and CheXbert F1 are measured only
    where their weights are given; `dive fetch-assets` says where these come from.

    \b
    Examples:
      dive score mine.csv
      dive score mine.csv theirs.jsonl --out scores.csv
      dive score mine.csv --hypothesis prediction --references test.csv --reference findings --id study
      dive score mine.csv --radgraph assets/radgraph --chexbert assets/chexbert/chexbert.pth
    """
    from dive.scores.files import Options, score_files

    score_files(files, Options(**options, **({"vocabulary": vocabulary} if vocabulary else {})))


@commands.command("check-data", cls=SeveralFiles, short_help="Check the datasets and estimate time and disk space.")
@reads_config
@click.option(
    "--sample", type=click.IntRange(1), default=2000, show_default=True, help="Studies to look at per dataset."
)
@click.option("--tflops", type=float, help="Speed of the GPU in 1e12 operations per second.")
@click.option("--bandwidth", type=float, help="Bandwidth of the GPU's memory in GB per second.")
@click.option("--layer-ms", type=float, help="Shortest time of one layer's call in milliseconds.")
@click.option("--tokens-a-word", type=float, default=1.5, show_default=True, help="Tokens per word of a report.")
def check_data(files: list[str], sample: int, tokens_a_word: float, **machine: float | None) -> None:
    """Check the configured datasets, and estimate what the configured experiments will take.

    Tables are compared with the official sizes. A sample of studies goes through the reader and the selection of the
    run. The estimate gives GPU hours and disk space. Nothing is written, and no text of a report is shown.

    \b
    Examples:
      dive check-data
      dive check-data --configfile config/paper.yaml
      dive check-data --profile profiles/paper --tflops 300 --bandwidth 2000
    """
    from dive.data import check
    from dive.data.estimates import Machine

    given = {name: value for name, value in machine.items() if value is not None}
    if not check.check_data(check.read_config(files), Machine(**given), sample, tokens_a_word):
        click.get_current_context().exit(1)


@commands.command("fetch-assets")
@click.argument("names", nargs=-1, type=click.Choice(ASSETS))
@click.option("--download", is_flag=True, help="Download them. Without this option they are only listed.")
@click.option("--folder", default="assets", show_default=True, help="Where they are put.")
def fetch_assets(names: tuple[str, ...], download: bool, folder: str) -> None:
    """List or download the weights of RadGraph and CheXbert.

    Each file is listed with its source, revision, size and hash. A download is checked against size and hash. Without
    NAMES these are RadGraph-XL and CheXbert.

    \b
    Examples:
      dive fetch-assets
      dive fetch-assets --download
      dive fetch-assets modern-radgraph-xl --download --folder /data/assets
    """
    from dive.scores import assets

    if download:
        os.environ["HF_HUB_OFFLINE"] = "0"  # huggingface_hub reads it when it is imported
    for line in assets.fetch_all(names, folder) if download else assets.plan(names, folder):
        click.echo(line)


@commands.command(cls=SeveralFiles, short_help="Print the table of a run, its verdicts and its files.")
@click.argument("experiments", nargs=-1)
@reads_config
@click.option("--results", default="results", show_default=True, help="Folder of the results.")
def show(experiments: tuple[str, ...], files: list[str], results: str) -> None:
    """Print the table of a run, its verdicts, what each change did, and where the files are.

    EXPERIMENTS are names of grids, such as main or ablations; without them the configured ones are shown. For each
    variant of our method in a grid, the difference to our method is printed with its interval and p value.

    \b
    Examples:
      dive show
      dive show main ablations
      dive show mine --configfile mine.yaml
    """
    from dive.configfiles import read_files
    from dive.data.roots import DataError
    from dive.reporting.summary import summarise_run

    named = [name for given in experiments for name in given.split(",") if name]
    names = list(dict.fromkeys(named or map(str, read_files(files).get("experiments", []))))
    if absent := [file for name in names if not (file := Path(results) / f"tables/{name}.csv").is_file()]:
        raise DataError(f"there is no {absent[0]}; run this grid first, or name one of those that were run")
    click.echo(summarise_run(results, names), nl=False)


@commands.command(cls=SeveralFiles)
@click.argument("methods", nargs=-1, required=True)
@reads_config
@click.option("--dataset", help="Dataset of the configuration; default: the first that is run.")
@click.option("--backbone", help="Backbone of the configuration; default: the first that is run.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the run; default: the first that the method has.")
@click.option("--study", "studies", multiple=True, metavar="ID", help="Study to show; may be repeated.")
@click.option("--number", type=click.IntRange(1), default=1, show_default=True, help="Best, median and worst studies.")
@click.option(
    "--by",
    type=click.Choice(["rouge_l", "lexicon_graph_f1", "radgraph_f1"]),
    default="rouge_l",
    show_default=True,
    help="Score that ranks the studies.",
)
@click.option("--results", default="results", show_default=True, help="Folder of the results.")
def reports(files: list[str], methods: tuple[str, ...], **options: Any) -> None:
    """Print reports that METHODS wrote beside the references.

    Without --study, the studies on which the first method scores best, median and worst are shown. Reports of patients
    are shown only if the setting analysis.view.credentialed is true.

    \b
    Examples:
      dive reports dive
      dive reports dive zero_shot icl --number 3
      dive reports dive --dataset synthetic-chexpert-plus --backbone tiny-qwen2.5-vl --by lexicon_graph_f1
      dive reports dive --study patient00012/study1
    """
    from dive.data.check import read_config
    from dive.reporting.examples import Request, show_reports

    click.echo(show_reports(read_config(files), methods, Request(**options)), nl=False)


@commands.command(short_help="Say what a run would do and why.", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def why(arguments: tuple[str, ...]) -> None:
    """Say what a run would do and why, in a line per cause: "rank 16 -> 8: 36 trainings, 36 generations".

    ARGUMENTS are targets and options of snakemake; nothing is run.

    \b
    Examples:
      dive why
      dive why --configfile config/paper.yaml
      dive why results/tables/main.tex
    """
    from dive.why import explain

    click.echo(explain(arguments), nl=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of this process.

    Returns:
        Exit status: 0 on success; 1 where a file or its content is wrong, in one sentence that says what to do; 2 where
        the arguments or the configuration are wrong.
    """
    try:
        status = commands.main(arguments, prog_name="dive", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        return 130
    except (Closed, BrokenPipeError):
        # Nothing is left to flush to the reader, who has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from dive.configfiles import ConfigError
        from dive.told import sentence_of

        if isinstance(error, ConfigError):
            click.echo(error, err=True)
            return 2
        if (told := sentence_of(error)) is None:
            raise
        click.echo(" ".join(told.split()), err=True)
        return 1
    return status or 0
