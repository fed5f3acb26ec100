"""The blocks whose kernels run on the host execution layer."""

from __future__ import annotations

from tests.cases import eca
from tests.cases.se import cuda as se
from tests.cases.sk import cuda as sk
from tests.cases.sk import network
from tests.cuda_host.problems import Problem

PROBLEMS: dict[str, tuple[Problem, ...]] = {
    module.PROBLEMS[0].block: module.PROBLEMS for module in (se, eca, sk, network)
}
