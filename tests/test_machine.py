import pytest

from bharateo.machine import cores_of_quota, memory_bytes

GIB = 2**30


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {
    "proc/meminfo": f"MemTotal: {8 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {6 * 2**20} kB\n"
}


@pytest.mark.parametrize(
    ("group", "available", "total"),
    [
        ({}, 6, 8),
        ({"memory.max": "max\n", "memory.current": f"{GIB}\n"}, 6, 8),
        ({"memory.max": f"{4 * GIB}\n", "memory.current": f"{GIB}\n"}, 3, 4),
        (
            {
                "memory.max": f"{4 * GIB}\n",
                "memory.current": f"{3 * GIB}\n",
                "memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            2,
            4,
        ),
        (
            {
                "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            1,
            2,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",  # no limit
                "memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            6,
            8,
        ),
    ],
)
def test_memory_is_what_the_control_group_leaves(tmp_path, group, available, total):
    files = {f"sys/fs/cgroup/{name}": text for name, text in group.items()}
    found = memory_bytes(write(tmp_path, MEMINFO | files))
    assert found == (available * GIB, total * GIB)


def test_a_system_that_does_not_tell_its_memory_is_not_guessed_at(tmp_path):
    assert memory_bytes(tmp_path) is None


@pytest.mark.parametrize(("text", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None)])
def test_a_quota_of_time_is_counted_in_cores(tmp_path, text, cores):
    assert cores_of_quota(write(tmp_path, {"sys/fs/cgroup/cpu.max": text})) == cores
    assert cores_of_quota(tmp_path / "elsewhere") is None
