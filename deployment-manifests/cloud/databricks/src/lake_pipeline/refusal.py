"""Why the job does not go on: the thing, the limit, the remedy."""


class Refusal(Exception):
    """A person has to change something. Nothing of the batch in hand was written."""
