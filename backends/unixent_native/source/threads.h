/* Threads for the length of one call: nothing stays, nothing spins, and a fork has nothing to forget. */
#if defined(_WIN32)
#include <windows.h>
typedef HANDLE Thread;
#define THREAD_FUNCTION static DWORD WINAPI
#define THREAD_RESULT 0
static int start_thread(Thread *thread, DWORD (WINAPI *function)(void *), void *argument) {
    *thread = CreateThread(NULL, 0, function, argument, 0, NULL);
    return *thread == NULL;
}
static void join_thread(Thread thread) { WaitForSingleObject(thread, INFINITE), CloseHandle(thread); }
#else
#include <pthread.h>
typedef pthread_t Thread;
#define THREAD_FUNCTION static void *
#define THREAD_RESULT NULL
static int start_thread(Thread *thread, void *(*function)(void *), void *argument) {
    return pthread_create(thread, NULL, function, argument);
}
static void join_thread(Thread thread) { pthread_join(thread, NULL); }
#endif
