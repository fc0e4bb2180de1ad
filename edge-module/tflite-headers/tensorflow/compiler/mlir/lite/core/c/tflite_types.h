/* Empty: everything is in tensorflow/lite/c/c_api.h. */
