"""Every configuration key with its default. Other configs start from this one and override a few.

Lengths are counted in images wherever a change of batch size should not change them.
"""

import ml_collections

from tdsm_jax.config import parse_arguments


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """Returns a fresh copy of the defaults; takes no arguments."""
    parse_arguments(arguments)
    return ml_collections.ConfigDict(
        {
            "seed": 0,  # label noise, networks, batches, samples: everything random derives from it
            "methods": ("dsm", "tdsm", "clean"),  # dsm, tdsm, s_weighted: noisy labels; clean: the ceiling
            "data": {
                "name": "digits",
                "test_fraction": 0.2,  # for sources without a split of their own
                "split_seed": 0,
            },
            "label_noise": {
                "kind": "sym",  # sym, pair, asym
                "rate": 0.4,
                "table": "digits",  # which classes asym confuses: digits, mnist, cifar10, cifar100
            },
            "transition": {
                "estimator": "known",  # known: the matrix the labels were drawn from; volmin: learnt from them
                "condition_limit": 1e3,  # a worse conditioned S is refused as not identifiable
                "volume_weight": 1e-4,  # volmin: weight of log det T
                "rate": 10.0,  # volmin: learning rate of the transition head over the network's
            },
            "classifier": {
                "widths": (32, 64),
                "hidden": 128,
                "dropout": 0.0,
                "folds": 3,  # each image is weighted by the classifier that never saw it
                "steps": 600,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "ramp_images": 2560,
                "ema_half_life": 5000,
                "ema_ramp": 0.1,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0: off
                "evaluate_every": 50,  # how often held-out noisy labels look for the stopping step
            },
            "network": {
                "channels": 32,
                "multipliers": (1, 1),
                "blocks": 1,
                "attention_resolutions": (),
                "dropout": 0.0,
                "dtype": "float32",  # of the network's arithmetic; parameters stay float32
            },
            "process": {
                "P_mean": -1.2,
                "P_std": 1.2,
                "sigma_data": 0.5,
                "sigma_min": 0.002,
                "sigma_max": 80.0,
            },
            "mixture": {  # how tdsm completes the given label's denoiser
                "rule": "floor",  # floor, threshold or all
                "tau": 0.01,  # threshold: weights up to it are cut
                "residual_slots": 2,  # floor: other classes evaluated by themselves, at most
                "packed": True,  # evaluate only the slots of non-zero weight
                "own_gradient": True,  # gradient through the given label only, as published
            },
            "score": {
                "label_dropout": 0.1,  # share of examples that train the null label
                "steps": 1200,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "ramp_images": 10_000,
                "ema_half_life": 20_000,
                "ema_ramp": 0.05,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0: off
            },
            "sampling": {
                "per_class": 144,
                "steps": 18,
                "rho": 7.0,
                "batch_size": 480,
                "grid_columns": 8,
            },
            "evaluation": {
                "widths": (32, 64),
                "hidden": 128,
                "dropout": 0.2,
                "steps": 500,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "ramp_images": 2560,
                "ema_half_life": 5000,
                "ema_ramp": 0.1,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0: off
                "nearest": 5,  # k of density and coverage
            },
            "logging": {"log_every": 50, "save_every": 200},  # steps
        }
    )
