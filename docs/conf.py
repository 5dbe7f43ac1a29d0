"""The course site: `make site` builds it of the committed notebooks and texts, and of what docs/assets.py has made."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import picture  # noqa: E402  (the paths come first)

import e2lib  # noqa: E402

project = "Training neural networks with their explanations"
author = copyright = "the e2lib authors"
version = release = e2lib.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "course",
]

# The source folder is the repository, so that links between its files are links between pages.
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/api/*.rst", "notebooks/*.ipynb", "notebooks/results.md", "data/README.md"]
include_patterns += ["notebooks/solutions/*.ipynb", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".venv", ".git", "runs", "datasets", "weights", "docs/_build", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_custom_formats = {".ipynb": ["course.read", {}, False]}
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["dollarmath", "alert"]  # > [!NOTE], as on GitHub
myst_heading_anchors = 3
myst_update_mathjax = False
highlight_language = "none"
html_math_renderer = "mathml"

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
# Names of other packages, whose sites are elsewhere, and private ones are shown and not linked.
nitpick_ignore_regex = [("py:.*", r"(?!e2lib\.).*|e2lib\..*\._.*")]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css", "playground/playground.css"]
templates_path = [str(ROOT / "docs" / "_templates")]  # autosummary seeks relative ones elsewhere than Sphinx
html_additional_pages = {"index": "forward.html"}
html_js_files = [("names.js", {"defer": "defer"})]
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_persistent": [],  # the search button has its place in the side bar
}
if picture.repository():  # buttons that open a notebook on machines of others
    html_theme_options |= {
        "repository_url": f"https://github.com/{picture.repository()}",
        "repository_branch": "main",
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }
