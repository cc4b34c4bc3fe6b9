"""Whole experiments, each one short file: settings at two scales, data, denoiser, training, samples, metrics.

A recipe is a module with these names, and `python -m tinydiff` offers what stands in RECIPES:

    Settings                    a frozen dataclass; every field is an option of the command line
    SCALES                      {"laptop": Settings(...), "full": Settings(...)}
    denoiser(s)                 the untrained denoiser
    train(s, **options)         -> Iterator[Step], by `fit`; options are fit's (checkpoint, resume)
    generate(d, n, s)           -> samples
    evaluate(d, s)              -> {metric: number}
    picture(samples, path)      writes a PNG
"""

from tinydiff.recipes import digits, dpm, fashion, fashion_dit, fashion_latent, fashion_noisy, shapes_latent, swiss_roll

RECIPES = {"swiss_roll": swiss_roll, "digits": digits, "dpm": dpm}
RECIPES |= {"fashion_unet": fashion, "fashion_dit": fashion_dit, "fashion_noisy_classifier": fashion_noisy}
RECIPES |= {"fashion_latent": fashion_latent, "shapes_latent": shapes_latent}
