"""`python -m runner.share`: a run's model on a hub on loopback, uploaded by huggingface_hub, loaded by transformers."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from runner import share
from runner.records import card
from runner.system import files
from runner.system.errors import UserError
from tests.conftest import cli_in
from tests.loopback_hub import PRIVATE, TOKEN, serve


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Path:
    """The folder of a finished run, beside its mlflow.db."""
    (file,) = (finished_run / "outputs").glob("*/result.json")
    return file.parent


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub that this process talks to, with a token that it takes; the folder that it serves."""
    root = tmp_path / "hub"
    (root / "models").mkdir(parents=True)
    with serve(root, tmp_path / "home", TOKEN) as env:
        monkeypatch.setattr(constants, "ENDPOINT", env["HF_ENDPOINT"])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(share, "set_up_process", lambda: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield root


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        share.main([str(argument) for argument in arguments])
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_a_model_is_uploaded_and_loaded_again_by_the_lines_of_its_card(run: Path, tmp_path: Path) -> None:
    root, model = tmp_path / "hub", run / "model"
    (root / "models").mkdir(parents=True)
    cli, before = cli_in(tmp_path), {f: f.read_bytes() for f in model.iterdir()}
    with serve(root, tmp_path / "home", TOKEN) as env:
        done = cli("-m", "runner.share", str(run), "--repo-id", "me/sparse", env={**env, "HF_TOKEN": TOKEN})
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{env['HF_ENDPOINT']}/me/sparse"
        assert TOKEN not in done.stdout + done.stderr

        there = root / "models" / "me" / "sparse"
        shared = {file.name: file.read_bytes() for file in there.iterdir()}
        assert shared.keys() == {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "pruning.json", "README.md"
        }  # fmt: skip
        text = shared.pop("README.md").decode()
        assert shared == {name: (model / name).read_bytes() for name in shared}
        assert text == (model / "README.md").read_text().replace(card.HERE, "me/sparse")
        assert {f: f.read_bytes() for f in model.iterdir()} == before
        (commit,) = map(json.loads, (root / "commits.jsonl").read_text().splitlines())
        assert commit["message"] == "small-model on demo, 4x1, seed 0"
        for name in (*shared, "README.md"):
            assert re.search(rf"{re.escape(name)} +{len((there / name).read_bytes()):,} bytes", done.stdout)

        # As a user would: the card's lines in a process that knows neither this package nor a token.
        (lines,) = (found for found in re.findall("```python\n(.*?)\n```", text, re.DOTALL) if "me/sparse" in found)
        assert len(lines.splitlines()) == 3
        saving = (
            "import sys\nmodel.save_pretrained('loaded')\nassert tokenizer('who')\nassert 'runner' not in sys.modules"
        )
        done = cli("-c", f"{lines}\n{saving}", env={**env, "PYTHONPATH": "", "HF_HOME": str(tmp_path / "another")})
        assert done.returncode == 0, done.stderr
    loaded, saved = (load_file(f / "model.safetensors") for f in (tmp_path / "loaded", model))
    assert loaded.keys() == saved.keys()
    assert all(bool((loaded[name] == saved[name]).all()) for name in saved)


def test_a_dry_run_asks_no_hub_and_needs_no_token(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(share, "set_up_process", lambda: None)
    monkeypatch.setattr(share, "given_token", lambda: pytest.fail("a token was asked for"))
    monkeypatch.setattr(share, "upload", lambda *given: pytest.fail("something was uploaded"))
    share.main([str(run), "--repo-id", "me/sparse", "--private", "--dry-run"])
    told = capsys.readouterr().out
    assert "for me/sparse (private):" in told
    assert "model.safetensors" in told
    assert told.endswith("nothing was uploaded (--dry-run)\n")
    # The run by its id in MLflow is the same.
    run_id = json.loads((run / "result.json").read_text())["mlflow_run"]
    uri = f"sqlite:///{run.parent.parent}/mlflow.db"
    monkeypatch.chdir(run.parent.parent)
    share.main([run_id, "--repo-id", "me/sparse", "--private", "--dry-run", "--tracking-uri", uri])
    assert capsys.readouterr().out == told


def test_a_private_repository_is_made_private(run: Path, hub: Path) -> None:
    share.main([str(run), "--repo-id", "me/secret", "--private", "--message", "mine"])
    share.main([str(run), "--repo-id", "me/open"])
    assert (hub / "models" / "me" / "secret" / PRIVATE).exists()
    assert not (hub / "models" / "me" / "open" / PRIVATE).exists()
    assert json.loads((hub / "commits.jsonl").read_text().splitlines()[0])["message"] == "mine"


def test_what_is_on_the_hub_is_changed_only_when_asked(run: Path, hub: Path) -> None:
    there = hub / "models" / "me" / "sparse"
    there.mkdir(parents=True)
    (there / ".gitattributes").write_text("the hub's own")
    share.main([str(run), "--repo-id", "me/sparse"])  # nothing of anybody's is in it
    (there / "model.safetensors").write_text("another")
    (there / "notes.txt").write_text("of others")
    said = refused(run, "--repo-id", "me/sparse")
    assert "exists and holds 7 files (README.md, config.json, model.safetensors, ...): --update" in said
    assert (there / "model.safetensors").read_text() == "another"
    share.main([str(run), "--repo-id", "me/sparse", "--update"])
    assert (there / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()
    assert (there / "notes.txt").read_text() == "of others"


def test_what_was_to_be_private_is_not_put_into_a_public_repository(run: Path, hub: Path) -> None:
    (hub / "models" / "me" / "sparse").mkdir(parents=True)
    assert "exists and is public" in refused(run, "--repo-id", "me/sparse", "--private")
    assert not (hub / "commits.jsonl").exists()


@pytest.mark.parametrize(("repo_id", "said"), [
    ("sparse", "name the owner too, as in OWNER/sparse"),
    ("me/a b", "alphanumeric"),
    ("me/a/b", "Repo id must be in the form"),
    ("me/a--b", "Cannot have -- or .."),
    ("../me", "--repo-id=../me"),
    ("", "--repo-id="),
])  # fmt: skip
def test_ids_that_are_none(run: Path, hub: Path, repo_id: str, said: str) -> None:
    assert said in refused(run, "--repo-id", repo_id)


def test_runs_that_are_none(tmp_path: Path, hub: Path, copy: Path) -> None:
    assert "neither a run's folder nor the id of a run" in refused(tmp_path / "none", "--repo-id", "me/sparse")
    (copy / "result.json").unlink()
    assert "there is no result.json" in refused(copy, "--repo-id", "me/sparse")


def test_weights_that_changed_are_not_shared(copy: Path, hub: Path) -> None:
    file = copy / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said = refused(copy, "--repo-id", "me/sparse")
    assert "model is not what the run wrote (model.safetensors is not what was written)" in said
    assert not list((hub / "models").iterdir())


def test_weights_that_are_not_as_claimed_are_not_shared(copy: Path, hub: Path) -> None:
    """Sealed all the same: the zeros themselves are counted."""
    model = copy / "model"
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "query.weight" in name)
    weights[name] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    names = files.manifest_names(model)
    listed = files.checksums(model, [model / name for name in names])
    (model / files.MANIFEST).write_text(json.dumps(listed))
    assert f"the weights are not as pruning.json says: {name}: 0 zeros" in refused(copy, "--repo-id", "me/sparse")


@pytest.mark.parametrize("kind", ["verified", "scored"])
def test_a_result_that_says_less_is_not_shared(copy: Path, hub: Path, kind: str) -> None:
    result = json.loads((copy / "result.json").read_text())
    result.pop(files.CHECKSUM)
    changes = {"verified": {"verification": None}, "scored": {"sparse": {"f1": 1.0, "exact_match": 1.0}}}[kind]
    files.write_json(copy / "result.json", {**result, **changes})
    said = {"verified": "its model was not verified", "scored": "pruning.json has other numbers than the run"}
    assert said[kind] in refused(copy, "--repo-id", "me/sparse")


@pytest.mark.parametrize(("name", "content", "said"), [
    ("pruning.json", None, "is not what the run wrote (pruning.json is missing)"),
    ("pruning.json", "{", "is not what the run wrote (pruning.json is not what was written)"),
    ("README.md", None, "a model is not shared without its card"),
    ("README.md", "no metadata", "its metadata, YAML between two lines of ---, cannot be read: it has none"),
    ("README.md", "---\na: [\n---\n", "its metadata, YAML between two lines of ---, cannot be read"),
    ("README.md", "---\n- a\n---\n", "should be a dict"),
])  # fmt: skip
def test_what_goes_with_the_weights_is_there_and_sound(
    copy: Path, hub: Path, name: str, content: str | None, said: str
) -> None:
    (copy / "model" / name).unlink() if content is None else (copy / "model" / name).write_text(content)
    assert said in refused(copy, "--repo-id", "me/sparse")
    assert not list((hub / "models").iterdir())


def test_a_card_that_was_edited_is_shared_as_it_is(copy: Path, hub: Path) -> None:
    file = copy / "model" / "README.md"
    (copy / "model" / "notes.txt").write_text("not of the run")
    file.write_text(file.read_text().replace("## Limits", "## Limits that we found\n\nNone.\n\n## Limits"))
    share.main([str(copy), "--repo-id", "me/sparse"])
    there = hub / "models" / "me" / "sparse"
    assert "## Limits that we found" in (there / "README.md").read_text()
    assert not (there / "notes.txt").exists()


def test_without_a_token_nothing_is_asked(
    run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    said = refused(run, "--repo-id", "me/sparse")
    assert "there is no token for the hub: log in by `hf auth login`, or set HF_TOKEN" in said


def test_a_hub_that_does_not_know_the_token(run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    said = refused(run, "--repo-id", "me/sparse")
    assert "refuses: it does not know the token: log in again by `hf auth login`" in said
    assert "hf_of_nobody" not in said


def test_a_token_that_may_not_write_there(run: Path, hub: Path) -> None:
    assert "the token may not write there: take one with the right to write to you" in refused(
        run, "--repo-id", "you/sparse"
    )
    assert not (hub / "commits.jsonl").exists()


def test_a_repository_that_changes_meanwhile(run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share.main([str(run), "--repo-id", "me/sparse"])
    from tests import loopback_hub

    plain = share.check_target

    def slowly(*given: object) -> None:
        plain(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(loopback_hub, "COMMIT", "beef" * 10)

    monkeypatch.setattr(share, "check_target", slowly)
    said = refused(run, "--repo-id", "me/sparse", "--update")
    assert "it was changed by somebody else during this upload" in said


def test_metadata_that_the_hub_refuses(copy: Path, hub: Path) -> None:
    file = copy / "model" / "README.md"
    file.write_text(file.read_text().replace("---\n", "---\nlicense: 5\n", 1))
    said = refused(copy, "--repo-id", "me/sparse")
    assert 'failed: Invalid metadata in README.md. - "license" must be a string' in said
    assert not (hub / "commits.jsonl").exists()


def test_offline(run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1 forbids to reach the hub" in refused(run, "--repo-id", "me/sparse")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens at this port
    assert "the hub at http://127.0.0.1:9 cannot be reached" in refused(run, "--repo-id", "me/sparse")


def test_a_defect_of_the_program_keeps_its_traceback(run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "check_target", lambda *given: {}["a defect"])
    with pytest.raises(KeyError, match="a defect"):
        share.main([str(run), "--repo-id", "me/sparse"])
