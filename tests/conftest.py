"""Options of the random tests: `--seed N` replays one case, `--first` and `--count` run others than `make test` does."""


def pytest_addoption(parser):
    group = parser.getgroup("seriatim", "random tests")
    group.addoption("--seed", type=int, help="run this random case alone")
    group.addoption("--first", type=int, default=0, help="first seed (default: 0)")
    group.addoption("--count", type=int, help="how many random cases (default: the test's own number)")
    group.addoption("--no-rtl", action="store_true", help="leave the RTL out of the random layers' levels")
