"""`import ftnb` loads nothing heavy: a person who only wants to see what there is does not wait."""

import subprocess
import sys


def test_the_package_alone_imports_neither_torch_nor_transformers():
    heavy = {"torch", "transformers", "datasets", "numpy", "pandas", "matplotlib", "ipywidgets", "torchmetrics"}
    code = f"import sys, ftnb; dir(ftnb); print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
