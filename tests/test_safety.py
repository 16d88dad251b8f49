"""What the package never does with a file from elsewhere: run it, unpack it, or read a pickle."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "ftnb").rglob("*.py"))
UNSAFE = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "zipfile", "tarfile", "subprocess",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "extractall", "unpack_archive", "read_pickle", "system", "popen",
    "full_load", "unsafe_load", "load_all",
}  # fmt: skip
BUILTINS = {
    "eval",
    "exec",
    "compile",
    "__import__",
}  # of these the bare name: `model.eval()` and `re.compile` are others


def findings(source: str, name: str = "source") -> list[str]:
    """Imports and calls that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"{name}:{node.lineno}: {module}" for module in modules if module.split(".")[0] in UNSAFE]
        if isinstance(node, ast.Call):
            found += [f"{name}:{node.lineno}: {problem}" for problem in _of_call(node)]
    return found


def _of_call(node: ast.Call) -> list[str]:
    called = ast.unparse(node.func)
    last, keywords = called.rpartition(".")[2], {k.arg: ast.unparse(k.value) for k in node.keywords}
    problems = []
    if called in BUILTINS or (last in CALLS - BUILTINS):
        problems.append(called)
    if called == "torch.load" and keywords.get("weights_only") != "True":
        problems.append("torch.load without weights_only=True")
    if called == "yaml.load" and "SafeLoader" not in keywords.get("Loader", ""):
        problems.append("yaml.load")
    if last == "load" and called.startswith(("np.", "numpy.")) and keywords.get("allow_pickle", "False") != "False":
        problems.append("numpy.load with allow_pickle")
    if keywords.get("trust_remote_code", "False") != "False":
        problems.append("trust_remote_code")
    return problems


def test_nothing_unsafe_in_the_package():
    assert len(SOURCES) > 100
    assert [found for path in SOURCES for found in findings(path.read_text(), str(path.relative_to(ROOT)))] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import tarfile", "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pd.read_pickle(path)", "archive.extractall(folder)", "shutil.unpack_archive(path)", "eval(text)", "exec(text)",
        "yaml.load(file)", "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
        "load_dataset(name, trust_remote_code=trust)", "os.system(text)", "torch.load(p, weights_only=flag)",
    ],
)  # fmt: skip
def test_the_check_sees_it(line):
    assert findings(line)


@pytest.mark.parametrize(
    "line",
    ["model.eval()", "re.compile(x)", "torch.load(p, weights_only=True)", "yaml.safe_load(f)", "torch.compile(m)"],
)
def test_the_check_leaves_the_harmless_alone(line):
    assert findings(line) == []


def test_a_recipe_cannot_name_code():
    from ftnb.recipe import Recipe, RecipeError

    for text in (
        "trust_remote_code = true",
        'strategy = {name = "full", trust_remote_code = true}',
        'task = "os.system"',
    ):
        with pytest.raises(RecipeError):
            Recipe.from_toml(text)


def test_a_model_folder_with_code_of_its_own_is_refused(tmp_path):
    """Such a folder asks for `trust_remote_code`, which nothing here switches on."""
    from ftnb.pretrained import ModelError
    from ftnb.tasks.text_classification import TextClassification

    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}})
    )
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nclass EvilConfig: pass\nclass EvilModel: pass\n"
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError):
        TextClassification.prepare([{"text": f"a {i}", "label": str(i % 2)} for i in range(20)], str(tmp_path))
    assert not ran.exists()
