"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """A mistake the user can mend: its text is one sentence that says what, where, and what to do.

    `train.py` and `generate.py` print it after `error: ` and exit with status 2,
    without a traceback. Everything else that is raised is a fault of the program.
    """
