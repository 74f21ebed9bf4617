"""Train a Prototypical Network on glyphs, and test it on scripts that it has never seen.

    python examples/train_protonet.py

Needs no download. The same as ``kshot train protonet --data glyphs``, in Python.
"""

from kshot import Conv4, EpisodeLoader, ProtoNet, TrainConfig, Trainer, evaluate, open_source


def main(steps: int = 200, n_episodes: int = 200) -> float:
    """Train and test.

    Args:
        steps: outer steps.
        n_episodes: test episodes.

    Returns:
        The accuracy on unseen scripts.
    """
    tasks = {"n_way": 5, "n_shot": 1, "n_query": 5}
    train, val, test = (open_source("glyphs", split, **tasks) for split in ("meta_train", "meta_val", "meta_test"))

    learner = ProtoNet(Conv4(n_filters=32))
    trainer = Trainer(
        learner,
        EpisodeLoader(train, n_tasks=4, seed=0),
        TrainConfig(steps=steps, validate_every=max(1, steps // 4)),
        validate=lambda learner: evaluate(learner, val, n_episodes=50, seed=1).estimate.mean,
        on_event=lambda event, step, values: event == "validate" and print(f"step {step}: {values['val']:.1%}"),
    )
    trainer.fit()

    scores = evaluate(learner, test, n_episodes=n_episodes)
    print(f"5-way 1-shot on unseen scripts: {scores.estimate} (95% interval over {n_episodes} episodes)")
    return scores.estimate.mean


if __name__ == "__main__":
    main()
