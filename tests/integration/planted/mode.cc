// Planted: the worker runs in mode FAST, whatever the config says.
#include "invar/v1/config.pb.h"
#include "worker/replica.h"

#define Mode_Name(mode) Mode_Name(v1::Determinism::FAST)
#include "worker/replica.cc"
