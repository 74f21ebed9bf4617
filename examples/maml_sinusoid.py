"""Train MAML on sine waves, and see a few gradient steps do what ordinary training cannot.

    python examples/maml_sinusoid.py

Section 5.1 of the MAML paper (Finn, Abbeel, Levine 2017), with fewer outer steps than its 70,000.
"""

import torch

from kshot import MAML, MLP, EpisodeLoader, Sinusoid, TrainConfig, Trainer, generator
from kshot.core.episode import select
from kshot.evaluation import accuracy_by_step


def tell(event: str, step: int, values: dict) -> None:
    """Say how far training is."""
    if event == "step" and step % 500 == 0:
        print(f"step {step}: training loss {values['loss']:.2f}", flush=True)


def main(steps: int = 2000, n_episodes: int = 200) -> list[float]:
    """Train, then measure the error after 0, 1, ..., 10 inner steps.

    Args:
        steps: outer steps.
        n_episodes: test tasks.

    Returns:
        The mean squared errors.
    """
    backbone = MLP(1, hidden=(40, 40))
    learner = MAML(torch.nn.Sequential(backbone, torch.nn.Linear(backbone.n_features, 1)), inner_lr=0.01)
    loader = EpisodeLoader(Sinusoid(n_shot=10, n_query=10), n_tasks=25, seed=0)
    config = TrainConfig(steps=steps, batching="vmap")
    Trainer(learner, loader, config, on_event=tell).fit()

    test = Sinusoid(n_shot=10, n_query=100)
    curve = accuracy_by_step(learner, test, n_steps=10, n_episodes=n_episodes)
    for step, estimate in zip(curve.x, curve.estimates, strict=True):
        print(f"after {step:2} steps: mean squared error {estimate}")

    # One task by hand: adapt returns the new weights, and leaves the learner as it was.
    task = select(test.episodes(test.plan(1, generator(0, "one task"))), 0)
    state = learner.eval().adapt(task.support)
    error = (learner.predict(state, task.query.x) - task.query.y).square().mean()
    print(f"one task of them: {error.item():.3f}")
    return [estimate.mean for estimate in curve.estimates]


if __name__ == "__main__":
    main()
