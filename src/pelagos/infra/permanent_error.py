"""The mark of errors that workers which are started again would only meet again."""


class PermanentError(Exception):
    """Base of Pelagos's own errors whose cause is known where they are raised, and stays.

    Mistakes in a job, damaged data, storage that was waited for as long as the job says. Whatever torch,
    Ray or the operating system raises is not one: a lost peer raises nearly everything.
    """
