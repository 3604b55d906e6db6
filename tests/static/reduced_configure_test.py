"""A machine without MPI, HDF5 and the other packages still gets the kernels and their tests, and is told the rest.

Usage: reduced_configure_test.py CMAKE GENERATOR CXX_COMPILER. Configures, builds nothing.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Names of find_package. The rest is found by pkg-config.
OPTIONAL = ["MPI", "HDF5", "Ceres", "yaml-cpp", "nlohmann_json", "CLI11", "ZLIB", "OpenSSL", "Python3"]
NO_PKG_CONFIG = "-DPKG_CONFIG_EXECUTABLE=/hidden"
OPTIONAL_ROWS = ["yaml-cpp", "nlohmann-json", "CLI11", "zlib", "libdeflate", "OpenSSL", "HDF5", "MPI", "SentencePiece",
                 "LAPACKE", "cpp-httplib", "prometheus-cpp", "Ceres", "Python"]

failures = 0


def check(good: bool, what: str, text: str) -> None:
    global failures
    if not good:
        failures += 1
        print(f"{what}:\n{text}\n")


def configure(hidden: list[str], *options: str) -> tuple[int, str, set[str]]:
    """Exit code, what was printed (runs of spaces as one), and the targets there are."""
    cmake, generator, compiler = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        command = [cmake, "-S", str(ROOT), "-B", folder, "-G", generator, f"-DCMAKE_CXX_COMPILER={compiler}",
                   "-DDEGU_CUDA=OFF", *(f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in hidden), *options]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        listed = subprocess.run([cmake, "--build", folder, "--target", "help"], capture_output=True, text=True,
                                check=False).stdout if result.returncode == 0 else ""
    printed = re.sub(r" +", " ", re.sub(r"\n(?!--)", " ", result.stdout))  # errors come in several lines
    return result.returncode, printed, set(re.findall(r"^(?:\.\.\. )?([\w-]+)(?::| |$)", listed, re.MULTILINE))


def main() -> int:
    code, said, targets = configure(OPTIONAL, NO_PKG_CONFIG)
    check(code == 0, "nothing but fmt, spdlog and Catch2: must configure", said)
    check({"kernels_test", "tensor_test", "base_test", "comm_socket_test", "degu_comm"} <= targets,
          "these must be there", str(targets))
    check(not {"degu", "degu_io", "yaml_test", "comm_mpi_test"} & targets, "these cannot be built", str(targets))
    for name in OPTIONAL_ROWS:
        lines = re.findall(rf"^-- {re.escape(name)} missing .*; install \S+; left out .+", said, re.MULTILINE)
        check(len(lines) == 1, f"one line must say that {name} is missing", said)

    code, said, targets = configure(["MPI"])
    check(code == 0, "without MPI: must configure", said)
    check(re.search(r"^-- MPI missing .*; install libopenmpi-dev; left out libraries: degu_mpi_test_support; tests: ",
                    said, re.MULTILINE) is not None, "without MPI: must say what is left out", said)
    check(said.count(" missing ") == 1, "without MPI: nothing else is missing", said)
    check({"degu", "degu_comm", "comm_socket_test", "moe_test"} <= targets
          and not {"degu_mpi_test_support", "comm_mpi_test", "comm_job_test"} & targets,
          "without MPI: all but the tests under mpirun", str(targets))

    code, said, _ = configure(["MPI", "HDF5"], "-DDEGU_REQUIRE_ALL=ON")
    check(code != 0 and "degu did not find: HDF5, MPI." in said and "libhdf5-dev libopenmpi-dev" in said,
          "with DEGU_REQUIRE_ALL a missing package must be an error", said)
    code, said, _ = configure([], NO_PKG_CONFIG, "-DDEGU_REQUIRE_ALL=ON")
    check(code != 0 and "liblapacke-dev" in said and "pkg-config" in said, "without pkg-config: must name it", said)
    code, said, _ = configure(["spdlog"])
    check(code != 0 and "degu did not find: spdlog." in said, "nothing is built without spdlog", said)
    print(f"5 configurations, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
