#pragma once

// Moved: it is plain data between checkpoint and tokenizer, which do not know each other.
#include "base/gguf_vocabulary.h"
