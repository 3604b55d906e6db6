#pragma once

namespace degu::test {

// Runs the binary's tests as the command line says; 0 when none failed.
int run_session(int argc, char** argv);

}  // namespace degu::test
