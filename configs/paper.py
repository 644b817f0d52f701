"""One cell of the tables of Na et al. 2024 (TDSM), by its name: the published recipe, trained, sampled, evaluated.

python -m tdsm_jax.paper      (lists the cells)
python -m tdsm_jax.main --config=configs/paper.py:cell=c10-sym40-tdsm,data=train.zip,test=test.zip,inception=FILE.pth \
    --workdir=runs/paper/c10-sym40-tdsm
python -m tdsm_jax.main --config=configs/paper.py:cell=c10-sym40-tdsm,smoke --workdir=runs/smoke/c10-sym40-tdsm
python -m tdsm_jax.paper --collect runs/paper

data, test, data_dir and labels are those of the dataset's own config (configs/cifar10.py ...); FID needs inception, the
weights pt_inception-2015-12-05-6726825d.pth. More seeds: seed=1 and --workdir=runs/paper/c10-sym40-tdsm/seed1. S is
learnt with the classifiers (VolMinNet), as the official code does; transition=known gives it to them.
"""

import ml_collections

from tdsm_jax.config import MATRICES, parse_arguments, sibling
from tdsm_jax.paper.cells import find


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns the config of a cell, for arguments such as "cell=c100-asym20-floor,data=c100.zip,seed=1,smoke"."""
    passed = {"data": "", "test": "", "data_dir": "", "labels": ""}
    estimators = ("volmin", *(name for name in MATRICES if name != "volmin"))
    chosen = parse_arguments(arguments, cell="", inception="", transition=estimators, seed=0, smoke=False, **passed)
    cell = find(chosen.cell)
    given = [f"{name}={getattr(chosen, name)}" for name in passed if getattr(chosen, name)]
    given += [cell.arguments, f"seed={chosen.seed}", "smoke" if chosen.smoke else ""]
    if cell.noise in ("sym", "asym", "crawled"):
        given.append(f"transition={chosen.transition}")
    config = sibling(__file__, cell.config).get_config(",".join(filter(None, given)))
    if cell.noise == "assumed":
        config.label_noise.kind = "clean"
    config.evaluation.classifiers = ("stages", "resnet18", "resnet50")
    if chosen.inception:
        # Neighbours are sought within a class, in a smoke run as well.
        config.sampling.per_class = max(6, config.sampling.per_class)
        config.evaluation.features = ("judge", f"inception:{chosen.inception}")
    return config
