"""Solvers whose questions are answered together."""

import threading

import pytest
from threadpoolctl import threadpool_info

from robustsk.attacks.minimal._lockstep import in_lockstep


def n_blas_threads():
    return [lib["num_threads"] for lib in threadpool_info() if lib["prefix"] == "libscipy_openblas"]


def counting(number, n_questions, results):
    def solver(ask):
        results[number] = [ask((number, k)) for k in range(n_questions)]

    return solver


def test_all_open_questions_are_answered_at_once_and_in_order():
    results, rounds, caller = {}, [], threading.get_ident()

    def answer(numbers, questions):
        assert threading.get_ident() == caller
        rounds.append(numbers)
        return [(10 * number + k) for number, k in questions]

    in_lockstep([counting(n, n, results) for n in range(4)], answer)
    assert rounds == [[1, 2, 3], [2, 3], [3]]
    assert results == {0: [], 1: [10], 2: [20, 21], 3: [30, 31, 32]}


def test_nothing_to_solve():
    in_lockstep([], None)


@pytest.mark.parametrize("where", ["solver", "answer", "interrupt"])
def test_an_error_ends_all_solvers_and_is_the_caller_s(where):
    before, n_threads, n_blas = threading.active_count(), [], n_blas_threads()
    ended = []

    def waiting(ask):
        try:
            while True:
                ask(0)
        finally:
            ended.append(True)

    def failing(ask):
        ask(0)
        raise RuntimeError("solver")

    def answer(numbers, questions):
        n_threads.append(threading.active_count())
        assert set(n_blas_threads()) <= {1}
        if where != "solver" and len(n_threads) == 3:
            raise {"answer": RuntimeError, "interrupt": KeyboardInterrupt}[where](where)
        return [1] * len(questions)

    solvers = [waiting, waiting, failing] if where == "solver" else [waiting, waiting]
    error = KeyboardInterrupt if where == "interrupt" else RuntimeError
    with pytest.raises(error, match=where):
        in_lockstep(solvers, answer)
    assert n_threads[0] == before + len(solvers)
    assert ended == [True, True]
    assert threading.active_count() == before
    assert n_blas_threads() == n_blas


def test_runs_in_two_threads_put_the_threads_of_blas_back():
    n_blas = n_blas_threads()
    first_is_in, second_is_done = threading.Event(), threading.Event()

    def answer_late(numbers, questions):
        first_is_in.set()
        second_is_done.wait(10)
        return [1]

    first = threading.Thread(target=in_lockstep, args=([lambda ask: ask(0)], answer_late))
    first.start()
    first_is_in.wait(10)
    in_lockstep([lambda ask: ask(0)], lambda numbers, questions: [1])
    second_is_done.set()
    first.join(10)
    assert n_blas_threads() == n_blas
