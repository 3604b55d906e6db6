#include "tests/support/session.h"

int main(int argc, char** argv) {
  return degu::test::run_session(argc, argv);
}
