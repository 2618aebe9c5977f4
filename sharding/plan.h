#pragma once
namespace regatta::sharding { class Plan; }
