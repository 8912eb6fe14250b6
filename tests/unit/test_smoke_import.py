import builders
from mediant.interventions import run


def test_a_tiny_subject_runs():
    lm = builders.subject("llama")
    assert run(lm, lm.encode("Mary and John")).logits.shape[0] == 1
