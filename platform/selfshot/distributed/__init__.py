"""The edges: Ray (session, training, embedding, trials), DeepSpeed and MLflow.

Nothing here is imported until it is used, for the heavy packages behind it take seconds.
"""
