"""What attacks, corruptions and norms are called."""

BALLS = {"linf": "L-inf", "l2": "L2"}
ATTACKS = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "apgd_ce": "Auto-PGD, cross-entropy",
    "apgd_dlr": "Auto-PGD, targeted DLR",
    "square": "square attack",
}
CORRUPTIONS = {
    "gaussian_noise": "noise",
    "gaussian_blur": "blur",
    "contrast": "low contrast",
    "jpeg": "JPEG",
}
