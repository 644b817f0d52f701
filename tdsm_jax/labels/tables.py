"""Which look-alike classes of a data set are confused: the tables of asymmetric label noise."""

# The 20 super-classes of CIFAR-100. Fine labels number the 100 names in alphabetical order.
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


def _cifar100_flips() -> dict[int, int]:
    """Each class becomes the next one of its super-class, the last becoming the first."""
    names = sorted(name for members in CIFAR100_SUPERCLASSES.values() for name in members)
    label = {name: index for index, name in enumerate(names)}
    return {
        label[name]: label[successor]
        for members in CIFAR100_SUPERCLASSES.values()
        for name, successor in zip(members, members[1:] + members[:1], strict=True)
    }


_DIGIT_FLIPS = {2: 7, 3: 8, 5: 6, 6: 5}
# table -> (K, the classes that flip and what each is mistaken for); the other classes stay clean
ASYMMETRIC_TABLES = {
    "digits": (10, _DIGIT_FLIPS),
    "mnist": (10, _DIGIT_FLIPS),
    "cifar10": (10, {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}),  # truck bird deer cat dog
    "cifar100": (100, _cifar100_flips()),
}
