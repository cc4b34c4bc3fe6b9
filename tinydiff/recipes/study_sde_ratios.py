"""How long a corrector's step? Predictor-corrector with other ratios r and trained scores, for notebook 06.

    python -m tinydiff.recipes.study_sde_ratios

The part `ratios` of `study_sde`, which has exact scores, with the trained ones of its table. Results in
data/results/06_sde_ratios.json.
"""

import time
from dataclasses import asdict

import torch

from tinydiff.progress import progress
from tinydiff.recipes.study_sde import SCHEDULES, SEEDS, Settings, ratios, train
from tinydiff.results import provenance, save_results


def main() -> None:
    torch.set_num_threads(1)
    began, rows = time.process_time(), []
    for seed in progress(SEEDS, desc="seeds"):
        s = Settings(seed=seed)
        rows += [dict(scores="trained", seed=seed) | row for row in ratios(s, train(s, SCHEDULES["VE to 20"]))]
    made = provenance("python -m tinydiff.recipes.study_sde_ratios")
    made |= {"settings": asdict(Settings()), "seeds": SEEDS, "seconds": round(time.process_time() - began)}
    save_results("06_sde_ratios", made | {"rows": rows})


if __name__ == "__main__":
    main()
