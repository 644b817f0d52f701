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
            "task": "generation",  # the main job; robust_losses: the benchmark of classification losses
            "seed": 0,  # label noise, networks, batches, samples: everything random derives from it
            "methods": ("dsm", "tdsm", "clean"),  # dsm, tdsm, s_weighted: noisy labels; clean: the ceiling; init
            "relabel": "argmax",  # the labels of methods relabel*: the likeliest; soft: drawn once from each posterior
            "init_from": "",  # a model file (ema.npz): score networks start from it; method init samples it as it is
            "generated": "",  # samples of an earlier run (samples/posterior.npz): classifiers train on them as on clean
            "data": {
                # digits; synthetic: made-up images; from `path`: archive (EDM's format), folder (a folder or zip of
                # CLASS/image.jpg), npz (arrays images and labels), clothing1m; mnist, fashion_mnist, cifar10, cifar100,
                # imagenet_resized: as TensorFlow Datasets or data.prepare has prepared them
                "name": "digits",
                # archive, folder, npz, clothing1m: the training images; prepared ones: their data_dir, "":
                # $TFDS_DATA_DIR or ~/tensorflow_datasets
                "path": "",
                "test_path": "",  # archive, folder, npz: the test images, their labels true; "": some are split off
                "labels_path": "",  # archive: a dataset.json whose clean labels replace those of `path`
                "test_fraction": 0.2,  # for sources without a split of their own
                "split_seed": 0,
                # synthetic; folder, clothing1m: cropped and resized to it, 0: as they are, all alike; imagenet_resized:
                # 8, 16, 32, 64; mnist, fashion_mnist: 28, or 32 by a black margin, which networks of three levels can
                # halve twice
                "image_size": 32,
                "channels": 3,  # synthetic; folder, clothing1m: 1: grey, 3: RGB
                "num_classes": 10,  # synthetic, and the next one
                "num_images": 1000,
                "stream": False,  # from files, but for npz: decode images when they are needed; needs grain
                "on_corrupt": "stop",  # folder, clothing1m; skip: leave out and count images that cannot be decoded
            },
            "label_noise": {
                "kind": "sym",  # drawn: sym, sym_inclusive, pair, asym, instance; clean: taken for sym of this rate;
                # from `path`: matrix (to draw from), file (labels), human (CIFAR-10N and CIFAR-100N, also as the
                # data_dir of cifar10_n or cifar100_n);
                # given: the labels of the data are the noisy ones, and nobody knows the true ones but of the images at
                # data.test_path: test images inside a .npz file or a prepared dataset have labels as given, too
                "rate": 0.4,
                "table": "digits",  # which classes asym confuses: digits, mnist, cifar10, cifar100
                "exact": False,  # flip the same number in every run instead of each label by chance
                "imbalance": 1.0,  # images of the smallest class over those of the largest, before corruption
                "path": "",  # a file of labels also goes with a drawn kind, which then says their matrix
                "column": "",  # of a table: which column; human: aggre_label, worse_label, noisy_label, ...
                "order_path": "",  # human: image_order_c10.npy where the file is in TFDS's order
            },
            "image_noise": {  # training images that are wrong, labels kept; test images and references are never
                # off; off_topic_symbols, off_topic_photos: other images in their place; occlusion, salt_pepper
                "kind": "off",
                "rate": 0.3,  # share of the training images, each by chance; method clean sees none of them
                "severity": 0.3,  # occlusion, salt_pepper: share of the pixels of such an image
            },
            "transition": {
                # known: the matrix the labels were drawn from; file: that of `path`; volmin: learnt with the
                # classifiers; estimated before them (labels/estimators.py): counts, anchor, dualt, confident_joint,
                # hoc, em; counts_shrunk, confident_joint_shrunk, hoc_shrunk, em_shrunk, em_calibrated
                "estimator": "known",
                "path": "",  # file: a matrix as .npy, .csv or .json
                "clean_per_class": 10,  # counts: how many clean labels it may read; of clothing1m all pairs
                "features": "pixels",  # hoc: in which neighbours share a class; network: of classifiers of noisy labels
                "start": "confident_joint_shrunk",  # em: the S by which noisy posteriors become clean ones
                "prior": "estimated",  # of the clean classes; uniform: as published. Only s_weighted depends on it
                "condition_limit": 1e3,  # a worse conditioned S is refused as not identifiable
                "volume_weight": 1e-4,  # volmin: weight of log det T
                "rate": 10.0,  # volmin: learning rate of the transition head over the network's
                "freeze_images": 0,  # volmin: where the transition head stops learning; 0: never
            },
            "classifier": {
                "network": "stages",  # stages, cnn, resnet18, resnet34
                "widths": (32, 64),  # of stages; the two of cnn; the first of a resnet, whose stages double it
                "hidden": 128,  # stages: width of the last layer but one
                "dropout": 0.0,
                "init_from": "",  # a fitted classifier (classifier.npz) to use instead of fitting any; needs folds=1
                "folds": 5,  # each image is weighted by the classifier that never saw it; 1: one sees all
                "members": 1,  # classifiers a fold, their probabilities averaged
                "loss": "forward",  # proper; elr or a robust loss (labels/losses.py) distorts the weights
                "forget_rate": 0.0,  # share of largest losses left out in the end (small-loss selection)
                "forget_ramp_images": 0,  # over which that share grows
                "co_teaching": False,  # two networks select for each other
                "stopping": True,  # at the best held-out noisy likelihood; needs folds > 1, as calibration does
                "calibration": "nll",  # temperature of h by held-out noisy labels: nll, own_weight, off
                "temperature_per_sigma": True,  # one for each noise level instead of one for all
                "temperature": 0.0,  # 0: as calibrated; else this one
                "augment": 0.0,  # probability of each of EDM's augmentations; the network is not told
                "light": (0.0, 0.0, 0.0),  # spread of small shifts (image sizes), rotations (rad), scales (octaves)
                "steps": 600,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "ramp_images": 2560,
                "ema_half_life": 5000,
                "ema_ramp": 0.1,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0: off
                "decay_images": (),  # from these on, the learning rate is multiplied by
                "decay_factors": (),  # these, not cumulatively
                "evaluate_every": 50,  # how often held-out noisy labels look for the stopping step
            },
            "stress": {  # classifiers made worse on purpose, to see what it costs
                "share": 1.0,  # of the training images, those that they see
                "logit_noise": 0.0,  # standard deviation of a fixed error in log h, a function of the image
            },
            "network": {
                "style": "ddpmpp",  # ddpmpp, ncsnpp, adm: U-Nets; dit: section dit, which reads dropout and dtype here
                "channels": 32,
                "multipliers": (1, 1),
                "blocks": 1,
                "attention_resolutions": (),
                "dropout": 0.0,
                "dtype": "float32",  # of the network's arithmetic; parameters stay float32
            },
            "dit": {  # the diffusion transformer, of network.style=dit
                "size": "tiny/1",  # tiny/1, tiny/2 (for 8x8 images), S/2, ..., B/4, ..., L/8, ..., XL/8: name/patch
                "patch": 0,  # the four numbers of a size, which networks/dit.py lists; 0: as the size says
                "width": 0,
                "depth": 0,
                "heads": 0,
                "conditioning": "adaln_zero",  # adaln_zero, cross_attention, in_context
                "attention": "full",  # which tokens see which: full; window: of the row of all; neighbourhood: around
                "window": 3,  # tokens that each sees, along an axis
            },
            "parallel": {  # how a batch is shared by all devices: the same comes out
                "backend": "shard_map",  # shard_map, pmap
            },
            "compute": {  # how score networks are computed: the same comes out, so a run may change it and go on
                # auto, xla, cudnn (bfloat16, GPU): jax.nn.dot_product_attention's; chunked: in memory linear in the
                # pixels or tokens
                "attention": "auto",
                "remat": False,  # activations twice instead of keeping them: less memory, a third more work
                "parts": 1,  # equal parts that a device takes its share of a training batch in: less memory
                "steps_a_call": 0,  # training steps a call of the device; 0: 1 on CPU, up to 8 elsewhere
            },
            "process": {  # of the score network; classifiers see edm's. vp and ve read none of the numbers
                "kind": "edm",  # edm, vp, ve
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
                "weights": "bayes",  # bayes; inverse: through the inverse of S, as published
                "dropped_label": "null",  # what an example without label trains: null, or class0 (as published)
                "packed": True,  # evaluate only the slots of non-zero weight
                "own_gradient": True,  # gradient through the given label only, as published
            },
            "refinement": {  # method refined: the model of method posterior judges the class of each training image
                "levels": 8,  # noise levels at which it denoises the image, spread as those of training
                "draws": 1,  # of noise, at each level
            },
            "correction": {  # method corrected: what undoes label noise while the model of dsm is sampled
                "limit": 5.0,  # the most that a difference between denoisers is magnified
                "slots": 9,  # other labels evaluated, at most: symmetric noise needs none, most kinds few
            },
            "score": {
                "label_dropout": 0.1,  # share of examples that train the null label
                "augment": 0.0,  # probability of each augmentation, told to the network; 0.12 is EDM's
                # what noise levels count (diffusion/weightings.py): own (the process's own weight), p2, debiased,
                # min_snr; uncertainty: learnt, so that all count the same
                "weighting": "own",
                # what D - x0 costs (diffusion/residuals.py): squared; pseudo-Huber, for corrupted images: huber,
                # huber_exponential, huber_reversed, huber_snr
                "residual": "squared",
                "huber_delta": 0.1,  # huber*: the (smallest) delta, in units of the network's output, of variance 1
                "huber_form": "element",  # huber*: pixels are bounded (published); example: images, which keeps means
                "steps": 1200,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "ramp_images": 10_000,
                "ema_half_life": 20_000,
                "ema_ramp": 0.05,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0: off
                "optimiser": "adam",  # with decoupled weight decay; adabelief, adopt
                "clip_percentile": 0.0,  # of the last clip_window norms after clip_norm, this one too; 0: off
                "clip_window": 128,
                "decay_images": (),  # from these on, the learning rate is multiplied by
                "decay_factors": (),  # these, not cumulatively
            },
            "sampling": {
                "per_class": 144,
                "solver": "heun",  # euler, heun, stochastic_heun (EDM's, with churn), dpmpp_2m
                "steps": 18,  # heun's evaluate the network 2 steps - 1 times, euler's and dpmpp_2m's once each
                "schedule": "edm",  # of noise levels: edm; vp, ve: as these processes were published with
                "rho": 7.0,  # edm: how they gather at small noise; 1: not at all
                "churn": 0.0,  # stochastic_heun: S_churn, noise added over all steps
                "churn_interval": (),  # from S_min to S_max, the noise levels at which; (): all
                "churn_noise": 1.0,  # S_noise, its standard deviation
                "guidance": 1.0,  # classifier-free: D_null + guidance (D - D_null); 0: unconditional, 1: none
                "guidance_interval": (),  # (low, high], the noise levels that are guided; (): all
                "guidance_rescale": 0.0,  # phi: share of the contrast guidance adds that is taken back; 0.7 is common
                "adaptive_guidance": 0.0,  # an image's guidance ends once cos(D, D_null) is above it, as .991; 0: never
                "autoguidance": "",  # a weaker model (ema.npz, a checkpoint or its training) to guide from, not D_null
                "batch_size": 480,
                "grid_columns": 8,  # of the pictures
                "grid_rows": 20,
            },
            "evaluation": {
                # that see labels and that CAS trains: stages (the small one), resnet18, resnet50
                "classifiers": ("stages",),
                # whose distances count: judge (stages); inception:FILE.pth, clip:FOLDER, ... (tdsm_jax/extractors.py)
                "features": ("judge",),
                "nearest": 5,  # k of density and coverage
                "widths": (32, 64),  # of stages, as all that follows up to the next two
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
                "decay_images": (),  # from these on, the learning rate is multiplied by
                "decay_factors": (),  # these, not cumulatively
                # Adam throughout. Published (Na et al. 2024) are the network and batch of resnet50; its lengths, rates
                # and changes of images are ours, and so is all of resnet18: 100 epochs of 50,000 images.
                "resnet18": {
                    "width": 64,  # of the first stage
                    "steps": 39_063,
                    "batch_size": 128,
                    "learning_rate": 1e-3,
                    "decay_images": (3_000_000, 4_000_000),
                    "decay_factors": (0.1, 0.01),
                    "light": (0.06, 0.0, 0.0),  # as in section classifier
                },
                "resnet50": {
                    "width": 64,
                    "steps": 33_334,
                    "batch_size": 150,
                    "learning_rate": 1e-3,
                    "decay_images": (3_000_000, 4_000_000),
                    "decay_factors": (0.1, 0.01),
                    "light": (0.06, 0.0, 0.0),
                },
            },
            "robust_losses": {  # the task of that name: classifiers of clean images on noisy labels
                "losses": (
                    *("ce", "fl", "gce", "sce", "mae", "rce"),  # of labels/losses.py, or elr; the first one is in
                    *("nce", "nfl", "nce+rce", "nfl+rce", "nce+mae"),  # every chart, five others beside it
                ),
                "active_weight": 1.0,  # a and b of the sums a active + b passive
                "passive_weight": 1.0,
                "networks": ("cnn", "resnet18"),  # or resnet34
                "cnn_widths": (8, 16),
                "resnet_width": 8,  # of the first stage, which the others double
                "noises": (  # kind:rate, the kinds that label_noise.kind draws
                    *("sym:0", "sym:0.2", "sym:0.4", "sym:0.6", "sym:0.8"),
                    *("asym:0.1", "asym:0.2", "asym:0.3", "asym:0.4"),
                ),
                "seeds": (0, 1, 2),  # of label noise, validation images, initial weights and batches
                "validation_share": 0.1,  # of the noisy training images, held out to choose the best step by accuracy
                "steps": 300,
                "batch_size": 64,
                "learning_rate": 3e-3,
                "ramp_images": 640,
                "ema_half_life": 5000,
                "ema_ramp": 0.0,  # 0: the parameters themselves are measured, no average
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0: off
                "decay_images": (),  # from these on, the learning rate is multiplied by
                "decay_factors": (),  # these, not cumulatively
                "evaluate_every": 25,  # how often the validation images are looked at
            },
            "logging": {"log_every": 50, "save_every": 200},  # steps
        }
    )
