import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent

project = "sk_easytensor"
author = "sk_easytensor developers"
copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/**/*.py", "sg_execution_times.rst"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

autosummary_generate = True
# Members of torch's own modules are documented by torch.
autodoc_default_options = {"members": True, "inherited-members": "Module"}
numpydoc_show_class_members = False
# Docstrings state the types of parameters.
autodoc_typehints = "none"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Inherited docstrings refer to labels and terms of scikit-learn's own documentation.
suppress_warnings = ["ref.ref", "ref.term"]

# Others take minutes, or start services and clusters.
EXECUTED = [
    "custom_block",
    "event_sequences",
    "grid_search",
    "multimodal_reviews",
    "time_series",
    "two_tower",
    "user_embeddings",
]
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/({'|'.join(EXECUTED)})\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "default_thumb_file": str(ROOT / "docs" / "report.png"),
}

html_theme = "furo"
html_title = f"sk_easytensor {release}"
