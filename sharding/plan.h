#pragma once
#include "sharding/bucket.h"
namespace regatta::sharding { class Plan; }
