#include <cstdio>
#include <cstdlib>
#include <chrono>
#include <string>
#include <vector>
#include <cstring>
typedef unsigned long long u64;
extern "C" { int cuInit(unsigned); int cuDeviceGet(int*,int); int cuDevicePrimaryCtxRetain(void**,int); int cuCtxSetCurrent(void*);
int cuModuleLoadData(void**, const void*); int cuModuleGetFunction(void**,void*,const char*); int cuLaunchKernel(void*,unsigned,unsigned,unsigned,unsigned,unsigned,unsigned,unsigned,void*,void**,void**);
int cuMemAlloc_v2(u64*,size_t); int cuMemcpyDtoH_v2(void*,u64,size_t); int cuCtxSynchronize(); int cuDevicePrimaryCtxReset_v2(int);}
int main() {
  cuInit(0); void *c; cuDevicePrimaryCtxRetain(&c,0); cuCtxSetCurrent(c);
  std::string ptx = ".version 8.1\n.target sm_80\n"; for (const char *n : {"fill_index","many_shuffles","many_products","barrier_in_branch","shuffle_after_end","wild_write"}) ptx += std::string(".visible .entry ")+n+"()\n";
  void *m; int r = cuModuleLoadData(&m, ptx.c_str()); printf("load %d\n", r);
  auto go=[&](const char *n, unsigned g, unsigned b, std::vector<void*> p){ void *f; int r=cuModuleGetFunction(&f,m,n); auto t0=std::chrono::steady_clock::now(); r|=cuLaunchKernel(f,g,1,1,b,1,1,0,nullptr,p.data(),nullptr); int s=cuCtxSynchronize(); printf("%s: %d sync %d %.3f ms\n", n, r, s, std::chrono::duration<double,std::milli>(std::chrono::steady_clock::now()-t0).count()); };
  u64 d; cuMemAlloc_v2(&d, 1<<20); int n=1000, rounds=10000;
  go("fill_index",8,128,{&d,&n}); int h[1024]; cuMemcpyDtoH_v2(h,d,sizeof h); printf("%d %d %x\n",h[1],h[999],h[1000]);
  go("fill_index",8,128,{&d,&n});
  go("many_shuffles",1,32,{&d,&rounds}); go("many_shuffles",8,256,{&d,&rounds}); go("many_products",8,128,{&d,&rounds});
  go("barrier_in_branch",1,64,{&d}); cuDevicePrimaryCtxReset_v2(0); cuModuleLoadData(&m, ptx.c_str());
  go("wild_write",1,64,{&d}); 
}
