#include "selftest.h"
void test_management() {}
