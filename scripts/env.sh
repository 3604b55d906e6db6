# Sourced by the other scripts: where the repository is, and Open MPI settings that hold on a laptop, in a
# container and in CI alike. Values that are already set win.
DEGU_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export DEGU_ROOT
# Root is usual in containers; Open MPI asks twice before it runs there.
export OMPI_ALLOW_RUN_AS_ROOT="${OMPI_ALLOW_RUN_AS_ROOT:-1}"
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}"
# More ranks than cores are allowed (tests use 4 on 2), and degu binds its own threads: Open MPI would pin
# `-n 1` to a single core.
export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
export OMPI_MCA_hwloc_base_binding_policy="${OMPI_MCA_hwloc_base_binding_policy:-none}"
# Open MPI ends a job by SIGCONT, this many seconds, SIGTERM, this many seconds, SIGKILL. Long enough to write a
# small checkpoint on SIGTERM (Open MPI's default of 1 is not), short enough that a job whose rank failed ends
# within seconds. A large model is stopped with SIGUSR1, which has no such limit.
export OMPI_MCA_odls_base_sigkill_timeout="${OMPI_MCA_odls_base_sigkill_timeout:-2}"
