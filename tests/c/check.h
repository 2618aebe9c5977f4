/* Checks for the C programs: a failed one says where, and the program ends with 1. */
#ifndef TESTS_C_CHECK_H
#define TESTS_C_CHECK_H

#include <regatta.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks_made = 0; /* by several threads */

#define CHECK(truth)                                                       \
  do {                                                                     \
    __sync_fetch_and_add(&checks_made, 1);                                 \
    if (!(truth)) {                                                        \
      fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #truth); \
      exit(1);                                                             \
    }                                                                      \
  } while (0)

/* The call succeeds. */
#define OK(call)                                                                                      \
  do {                                                                                                \
    int status_ = (call);                                                                             \
    __sync_fetch_and_add(&checks_made, 1);                                                            \
    if (status_ != REGATTA_OK) {                                                                      \
      fprintf(stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call, regatta_status_name(status_), \
              regatta_last_error());                                                                  \
      exit(1);                                                                                        \
    }                                                                                                 \
  } while (0)

/* The call is refused as an invalid argument, with `text` in its sentence. */
#define REFUSED(call, text)                                                                                       \
  do {                                                                                                            \
    int status_ = (call);                                                                                         \
    __sync_fetch_and_add(&checks_made, 1);                                                                        \
    if (status_ != REGATTA_INVALID_ARGUMENT || strstr(regatta_last_error(), (text)) == NULL) {                    \
      fprintf(stderr, "%s:%d: %s: expected a refusal with '%s', got %s: %s\n", __FILE__, __LINE__, #call, (text), \
              regatta_status_name(status_), regatta_last_error());                                                \
      exit(1);                                                                                                    \
    }                                                                                                             \
  } while (0)

#endif
