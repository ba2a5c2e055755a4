"""Upload a run's model and its card to the hub. Only this command shares anything.

python -m runner.share RUN --repo-id OWNER/NAME [--private] [--update] [--message TEXT] [--dry-run] [--tracking-uri URI]

RUN is a run's folder, or its id in MLflow. Before the upload, the model is checked again against its checksums, its
pattern and the numbers of the run. All files are uploaded in one commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.safe_text import without_secrets
from runner import models
from runner.inspect import inspect
from runner.records import card, markdown, runs
from runner.records.runs import Run
from runner.system.commands import command_parser
from runner.system.errors import UserError
from runner.system.files import integrity_error, manifest_names
from runner.system.hub import explain_upload
from runner.system.process import command, set_up_process
from runner.system.text_tables import aligned
from runner.tracking import Tracking

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

PRUNING = "pruning.json"
_FILES_OF_THE_HUB = {".gitattributes"}  # created by the hub itself


def check_id(repo_id: str) -> None:
    """Refuse anything but OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--repo-id={repo_id}: {error}") from error
    if "/" not in repo_id:
        raise UserError(f"--repo-id={repo_id}: name the owner too, as in OWNER/{repo_id}")


def check(run: Run) -> None:
    """Refuse a model whose files or zeros are not exactly those that its run saved and scored."""
    model = run.folder / "model"
    problem = integrity_error(model)
    if problem is not None:
        raise UserError(f"{model} is not what the run wrote ({problem}): run it again with force=true, and share that")
    if run.result["sparse"] is None:
        return
    if run.result["verification"] is None:
        raise UserError(f"{run.folder}: its model was not verified: run it again with force=true, and share that")
    check_pruning(model / PRUNING, run.result)
    with models.quiet_loading():
        report = inspect(model)
    if report.broken_claims:
        raise UserError(f"{model}: the weights are not as {PRUNING} says: {report.broken_claims[0]}")


def check_pruning(file: Path, result: Mapping[str, Any]) -> None:
    """Refuse a pruning.json whose numbers are not those of the run's result."""
    pruning, expected = json.loads(file.read_text(encoding="utf-8")), result["verification"]
    expected = {**expected, "dense": result["dense"], "sparse": result["sparse"]}
    if {key: pruning[key] for key in expected} != expected:
        raise UserError(f"{file} has other numbers than the run: run it again with force=true, and share that")


def files_of(run: Run, repo_id: str) -> dict[str, Path | bytes]:
    """The files to upload, by name: the model, pruning.json, and the card with the id to load the model from."""
    model = run.folder / "model"
    files: dict[str, Path | bytes] = {name: model / name for name in manifest_names(model)}
    return files | {card.NAME: card_for(model / card.NAME, repo_id).encode()}


def card_for(file: Path, repo_id: str) -> str:
    """The text of the card, with the hub's id as the place to load the model from."""
    import yaml
    from huggingface_hub import ModelCard

    if not file.is_file():
        raise UserError(
            f"{file} is missing: a model is not shared without its card; write one (metadata in YAML between two lines "
            "of ---, then Markdown), or repeat the run with force=true"
        )
    try:
        text = file.read_text(encoding="utf-8")
        if not ModelCard(text).data.to_dict():
            raise ValueError("it has none")
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: its metadata, YAML between two lines of ---, cannot be read: {reason}") from error
    return without_secrets(text.replace(card.HERE, repo_id))


def size_of(content: Path | bytes) -> int:
    """Size in bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def announce(files: Mapping[str, Path | bytes], repo_id: str, private: bool) -> None:
    """Print the files and their sizes."""
    print(f"for {repo_id}{' (private)' if private else ''}:")
    sizes = {name: size_of(content) for name, content in files.items()}
    rows = [*sizes.items(), ("in all", sum(sizes.values()))]
    print(*aligned([(f"  {name}", f"{size:,} bytes") for name, size in rows], right={1}), sep="\n")


def existing(api: HfApi, repo_id: str) -> ModelInfo | None:
    """The repository; None if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def check_target(target: ModelInfo | None, repo_id: str, private: bool, update: bool) -> None:
    """Refuse to overwrite files without --update, and to publish what should be private."""
    if target is None:
        return
    if private and not target.private:
        raise UserError(
            f"--private: {repo_id} exists and is public, which an upload does not change: change it on the hub, or "
            "give another --repo-id"
        )
    names = sorted({sibling.rfilename for sibling in target.siblings or []} - _FILES_OF_THE_HUB)
    if names and not update:
        more = ", ..." if len(names) > 3 else ""
        raise UserError(
            f"{repo_id} exists and holds {len(names)} files ({', '.join(names[:3])}{more}): --update overwrites them "
            "with this model, and leaves files of other names; or give another --repo-id"
        )


def upload(
    files: Mapping[str, Path | bytes], repo_id: str, private: bool, update: bool, message: str, token: str
) -> str:
    """Upload in one commit, and create the repository if there is none.

    Returns:
        The model's address.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    with explain_upload(repo_id, token):
        target = existing(api, repo_id)
        check_target(target, repo_id, private, update)
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo_id, additions, commit_message=message, parent_commit=target.sha if target else None)
    return str(url)


def main(arguments: list[str]) -> None:
    """Share a run."""
    parser = command_parser("share", "outputs/RUN --repo-id owner/name --dry-run")
    runs.add_arguments(parser, places=False)
    parser.add_argument("--repo-id", required=True, metavar="OWNER/NAME", help="repository on the hub (HF_ENDPOINT)")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--update", action="store_true", help="overwrite the files of the repository")
    parser.add_argument("--message", help="the commit message")
    parser.add_argument("--dry-run", action="store_true", help="check, and show what would be uploaded, offline")
    options = parser.parse_args(arguments)
    set_up_process()
    check_id(options.repo_id)
    run = runs.find(options.run, Tracking(uri=options.tracking_uri))
    token = "" if options.dry_run else given_token()
    check(run)
    files = files_of(run, options.repo_id)
    announce(files, options.repo_id, options.private)
    if options.dry_run:
        print("nothing was uploaded (--dry-run)")
        return
    message = options.message or described(run)
    print(upload(files, options.repo_id, options.private, options.update, message, token))


def described(run: Run) -> str:
    """The run in one line."""
    result = run.result
    return markdown.line(f"{result['model']} on {result['dataset']}, {result['pattern']}, seed {result['seed']}")


def given_token() -> str:
    """The user's token for the hub. Raises UserError if there is none."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError(
            "there is no token for the hub: log in by `hf auth login`, or set HF_TOKEN to one that may write"
        )
    return token


if __name__ == "__main__":
    command(main)
