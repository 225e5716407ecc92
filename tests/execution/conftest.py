"""The surroundings that these tests share."""

from tests.execution.surroundings import acts as acts
from tests.execution.surroundings import runtime as runtime
from tests.execution.surroundings import worker as worker
