"""Solvers that work on one problem each, and have their questions answered together."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread

from threadpoolctl import ThreadpoolController

from ..._shared import Held


class _Abandoned(BaseException):
    """Nobody waits for the result of a solver any more."""


def in_lockstep(solvers, answer):
    """Run solvers side by side, each until its next question, and answer all questions at once.

    A network answers many questions in hardly more time than one. The solvers take turns in
    threads of their own, which see none of the network: all questions are answered in the calling
    thread, in the order of the solvers.

    Parameters
    ----------
    solvers : list of callable
        ``solver(ask)`` calls ``ask(question)`` for each answer that it needs.
    answer : callable
        ``answer(numbers, questions)`` returns the answers to the questions of some of the solvers,
        whose places in the list are `numbers`.
    """
    asked, answers = SimpleQueue(), [SimpleQueue() for _ in solvers]

    def work(number, solver):
        def ask(question):
            asked.put((number, question, None))
            found = answers[number].get()
            if found is None:
                raise _Abandoned
            return found

        error = None
        try:
            solver(ask)
        except BaseException as failure:
            error = failure
        asked.put((number, None, error))

    threads = [Thread(target=work, args=pair, daemon=True) for pair in enumerate(solvers)]
    with _ONE_THREAD_OF_BLAS:
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                # each of them either asks or ends
                said = sorted((asked.get() for _ in range(running)), key=lambda what: what[0])
                for _, _, error in said:
                    if error is not None:
                        raise error
                open_ = [(number, question) for number, question, _ in said if question is not None]
                running = len(open_)
                if running:
                    numbers, questions = zip(*open_, strict=True)
                    found = answer(list(numbers), list(questions))
                    for number, value in zip(numbers, found, strict=True):
                        answers[number].put(value)
        finally:
            for queue in answers:
                queue.put(None)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()


def _one_thread_of_scipy():
    own = ThreadpoolController().select(prefix="libscipy_openblas")
    return own.limit(limits=1).restore_original_limits


#: While a solver runs anywhere: its matrices have a few rows.
_ONE_THREAD_OF_BLAS = Held(_one_thread_of_scipy)
