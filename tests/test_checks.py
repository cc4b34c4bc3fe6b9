"""Every check of an exercise accepts right solutions and rejects the usual wrong ones, each for its reason.

The solutions stand in solutions_*.py, a file for each check module:
EXERCISES = {name: (check, [right ones, written differently], {what is wrong: (solution, what the message must say)})}.
"""

import pytest
import solutions_bound
import solutions_cfg
import solutions_classifier_guidance
import solutions_consistency
import solutions_ddim
import solutions_ddpm
import solutions_distill
import solutions_dit
import solutions_evaluation
import solutions_flow
import solutions_images
import solutions_improved
import solutions_langevin
import solutions_latent
import solutions_likelihood
import solutions_ncsn
import solutions_score_matching
import solutions_sde
import solutions_solvers
import torch

import tinydiff as td
from tinydiff.check import CheckFailed

FILES = (
    solutions_ddpm,
    solutions_bound,
    solutions_improved,
    solutions_langevin,
    solutions_score_matching,
    solutions_ncsn,
    solutions_sde,
    solutions_likelihood,
    solutions_flow,
    solutions_ddim,
    solutions_solvers,
    solutions_images,
    solutions_classifier_guidance,
    solutions_cfg,
    solutions_dit,
    solutions_evaluation,
    solutions_latent,
    solutions_distill,
    solutions_consistency,
)
EXERCISES = {name: entry for file in FILES for name, entry in file.EXERCISES.items()}
RIGHT = [(name, f) for name, (_, solutions, _) in EXERCISES.items() for f in solutions]
WRONG = [(name, what) for name, (_, _, mutants) in EXERCISES.items() for what in mutants]
EACH = pytest.mark.parametrize("name", EXERCISES)


def test_every_check_is_here_with_three_wrong_solutions_and_two_right_ones():
    public = {name for name, value in vars(td.check).items() if callable(value)} - {"CheckFailed"}
    assert EXERCISES.keys() == public and sum(len(file.EXERCISES) for file in FILES) == len(public)
    for check, solutions, mutants in EXERCISES.values():
        assert check in vars(td.check).values() and len(solutions) >= 2 and len(mutants) >= 3


@pytest.mark.parametrize("name, solution", RIGHT, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_right_solutions_pass_with_one_line(name, solution, capsys):
    EXERCISES[name][0](solution)
    line = capsys.readouterr().out
    assert line.startswith(f"{name}: right, ") and line.endswith("properties hold.\n") and line.count("\n") == 1


@pytest.mark.parametrize("name, what", WRONG)
def test_wrong_solutions_are_rejected_for_the_right_reason(name, what, capsys):
    check, _, mutants = EXERCISES[name]
    mutant, message = mutants[what]
    with pytest.raises(CheckFailed, match=f"(?s){message}"):
        check(mutant)
    assert not capsys.readouterr().out


@EACH
def test_the_stub_is_told_apart_from_a_wrong_answer(name):
    def stub(*args):
        raise NotImplementedError

    with pytest.raises(CheckFailed, match=f"^{name} is not written yet: put your code in place of"):
        EXERCISES[name][0](stub)


@EACH
def test_checks_leave_the_random_state_alone(name):
    check, solutions, _ = EXERCISES[name]
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    check(solutions[0])
    assert torch.equal(torch.rand(1), want)
