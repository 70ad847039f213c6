// What llama.cpp needs once before anything else: its log, its tables, a backend to compute with.

#pragma once

// Get llama.cpp ready; any number of times, from any thread. Fails with PMPD_FAILED where there is no backend
void pmpd_backend_check(void);
