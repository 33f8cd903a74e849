"""Sphinx configuration."""

import importlib
import inspect
import pathlib
import warnings

import robustsk

HERE = pathlib.Path(__file__).parent

project = "robustsk"
author = "The robustsk developers"
copyright = "2026, The robustsk developers"
release = version = robustsk.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(sklearn|skorch|torch)\..*")]

html_theme = "pydata_sphinx_theme"
html_title = "robustsk"
html_static_path = ["_static"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}

autosummary_generate = True
autodoc_typehints = "none"
# an estimator's page shows what robustsk defines, not what every skorch net has
autosummary_context = {
    "foreign": ", ".join(
        [
            "NeuralNetClassifier", "NeuralNet", "ClassifierMixin", "TransformerMixin",
            "OneToOneFeatureMixin", "BaseEstimator", "_MetadataRequester", "Module", "Dataset",
            "EpochScoring", "Exception",
        ]
    ),
    "hooks": ", ".join(
        [
            "set_fit_request", "set_partial_fit_request", "set_score_request", "set_output",
            "get_dataset", "get_iterator", "get_loss", "infer", "check_data", "check_is_fitted",
            "initialize_module", "initialize_criterion", "on_epoch_end", "on_train_begin",
            "train_step", "train_step_single", "dataset",
        ]
    ),
}  # fmt: skip
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 60,
    "within_subsection_order": "ExampleTitleSortKey",
}
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

# --- the API reference is made from the public names -------------------------------------

PACKAGES = sorted(
    path.parent.name for path in pathlib.Path(robustsk.__file__).parent.glob("*/__init__.py")
)


def write_api(app=None):
    """Write one page per subpackage, listing what its ``__all__`` holds.

    What `robustsk.attacks` passes on from `robustsk.victims` is described there only, so that a
    reference has one place to lead to.
    """
    elsewhere = {"attacks": robustsk.victims.__all__}
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    for name in PACKAGES:
        module = importlib.import_module(f"robustsk.{name}")
        title = f"robustsk.{name}"
        names = [n for n in module.__all__ if n not in elsewhere.get(name, ())]
        public = [(n, getattr(module, n)) for n in names]
        groups = {
            "Classes": [n for n, v in public if inspect.isclass(v)],
            "Functions": [n for n, v in public if inspect.isroutine(v)],
        }
        lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
        lines += [f".. currentmodule:: {title}", ""]
        for heading, names in groups.items():
            if names:
                lines += [heading, "-" * len(heading), "", ".. autosummary::"]
                lines += ["   :toctree: generated", "   :nosignatures:", ""]
                lines += [f"   {n}" for n in sorted(names)] + [""]
        text = "\n".join(lines)
        page = folder / f"{name}.rst"
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
    title = "API reference"
    text = "\n".join(
        [title, "=" * len(title), "", "What is typed often can also be imported from",
         "``robustsk`` itself.", "", ".. toctree::", "   :maxdepth: 1", ""]
        + [f"   {name}" for name in PACKAGES]
    )  # fmt: skip
    (folder / "index.rst").write_text(text + "\n")


write_api()
